"""Sign a bundle's files with a private key, by OpenSSF model-signing.

Request: {name, digests, key, password_file | null}. `digests` maps each file's name to its SHA-256;
`key` is a PEM file with an elliptic-curve key (P-256, P-384 or P-521), `password_file` holds its
password in the first line. Response: {signature}, the text of the signature file.

Nothing leaves the machine: with a key the library asks no server.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import WorkerError, run
from _signed_files import KnownDigests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing

CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE = "Make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out private.pem"


def main(request):
    password = _password(request["password_file"])
    check_key(Path(request["key"]), password)
    config = signing.Config().use_elliptic_key_signer(private_key=request["key"], password=password)
    config.set_hashing_config(KnownDigests(request["name"], request["digests"]))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.sig"
        config.sign(folder, made)
        return {"signature": made.read_text(encoding="utf-8")}


def _password(path):
    """The first line of a password file as bytes, None without a file."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes().splitlines()[0]
    except OSError as error:
        raise WorkerError(f"the password file {path} cannot be read: {error.strerror}") from error
    except IndexError as error:
        raise WorkerError(f"the password file {path} is empty") from error


def check_key(path, password):
    """Raise WorkerError unless the file holds a private key that can sign."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except OSError as error:
        raise WorkerError(f"the key {path} cannot be read: {error.strerror}") from error
    except TypeError as error:  # what the library says of a password that lacks, or is too much
        if password is None:
            raise WorkerError(
                f"the key {path} is encrypted",
                "Give its password in the first line of a file: --password-file FILE.",
            ) from error
        raise WorkerError(
            f"the key {path} is not encrypted", "Leave --password-file out."
        ) from error
    except Exception as error:
        wrong = "the password is wrong, or the file is damaged" if password else "no PEM text"
        raise WorkerError(f"{path} is no usable private key: {wrong}", MAKE) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise WorkerError(f"{path} is no elliptic-curve key on P-256, P-384 or P-521", MAKE)


if __name__ == "__main__":
    run(main)
