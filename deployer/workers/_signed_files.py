"""The files of a bundle as model-signing sees them, with digests that were computed beforehand.

The library would hash every file again in this process, 40 s for 16 GB. deployer has just done so,
and remembers what is unchanged. So the library gets the digests where it would read the files; what
is signed, and what a signature is compared with, is the same.
"""

from pathlib import PurePosixPath

from model_signing import hashing, manifest
from model_signing._hashing.hashing import Digest

SIGNATURE = "model.sig"


class KnownDigests(hashing.Config):
    """A hashing configuration that gives `digests` (name -> SHA-256 in hex) for any folder."""

    def __init__(self, name, digests):
        super().__init__()
        self.name = name
        self.digests = digests

    def hash(self, model_path, *, files_to_hash=None):
        how = {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [SIGNATURE],
        }
        items = [
            manifest.FileManifestItem(
                path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(digest))
            )
            for name, digest in self.digests.items()
        ]
        return manifest.Manifest(self.name, items, manifest.SerializationType.from_args(how))
