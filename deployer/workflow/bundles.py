"""Find a bundle by folder, by name or as the newest, and see that it is whole."""

from __future__ import annotations

from pathlib import Path

from deployer.artifacts import MANIFEST, Bundle
from deployer.errors import StoreError, UsageError
from deployer.home import Home


def find_bundle(what: str | None, home: Home) -> Bundle:
    """A bundle by its folder or its name; the newest one where nothing is named."""
    return _checked(find_root(what, home))


def find_root(what: str | None, home: Home) -> Path:
    """The folder of a bundle, found as `find_bundle` finds it and not looked into."""
    if what is not None and (Path(what) / MANIFEST).is_file():
        return Path(what)
    records = [path for path in home.bundles.glob("*/*.json") if path.with_suffix("").is_dir()]
    if what is not None:
        records = [path for path in records if path.parent.name == what]
    if not records:
        which = f"no bundle {what!r}" if what else "no bundle yet"
        raise UsageError(f"there is {which}", "Build one: deployer build recipes/smollm2-q4_0.yaml")
    newest = max(records, key=lambda path: path.stat().st_mtime_ns)
    return newest.with_suffix("")


def _checked(root: Path) -> Bundle:
    """Read a bundle and see that its manifest is intact and its files have the right sizes.

    Quick, and not enough to trust it: `deployer verify` looks at every byte.
    """
    try:
        bundle = Bundle.read(root)
    except (OSError, ValueError) as error:
        raise StoreError(f"{root} has no readable manifest", "Build the bundle again.") from error
    manifest = bundle.manifest
    if (manifest.digest, manifest.seal) != (manifest.true_digest(), manifest.true_seal()):
        raise StoreError(
            f"the manifest of {root} was changed after it was made", "Build the bundle again."
        )
    for entry in manifest.files:
        path = root / entry.path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            raise StoreError(
                f"{path} should have {entry.size} bytes and "
                + ("is missing" if size is None else f"has {size}"),
                "Build the bundle again.",
            )
    return bundle
