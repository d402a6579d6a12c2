"""deployer's own wheel, packed from the code that runs now.

A wheel is a zip of the package and its metadata. Packing what runs needs no build tool and no
checkout, gives the same bytes each time, and carries exactly the code that made the archive, also
where it is installed as a link to a checkout.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import deployer
from deployer import __version__
from deployer.errors import ToolchainError

_LOAD_TESTS = "_loadtests"
_WHEEL = f"""\
Wheel-Version: 1.0
Generator: deployer {__version__}
Root-Is-Purelib: true
Tag: py3-none-any
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_own_wheel(folder: Path) -> Path:
    """Write deployer's wheel to a folder and give its path; raises ToolchainError where it cannot.

    That is where the running code is no installed distribution, so nothing says what it needs.
    """
    try:
        installed = distribution("deployer")
    except PackageNotFoundError as error:
        raise ToolchainError(
            "deployer is not installed, so it cannot be carried along",
            "Install it: `make setup` in a checkout, or pip install.",
        ) from error
    version = installed.version
    content = _package() | _metadata(installed, f"deployer-{version}.dist-info")
    record = f"deployer-{version}.dist-info/RECORD"
    lines = [_line(name, data) for name, data in sorted(content.items())]
    content[record] = "".join([*lines, f"{record},,\n"]).encode()
    target = folder / f"deployer-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in sorted(content, key=lambda each: (each == record, each)):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            wheel.writestr(info, content[name])
    return target


def _package() -> dict[str, bytes]:
    """Every file of the running package, and the Locust files where a checkout has them beside."""
    package = Path(deployer.__file__).parent
    found = _files(package, "deployer")
    if not (package / _LOAD_TESTS).is_dir():
        found |= _files(package.parent / "loadtests", f"deployer/{_LOAD_TESTS}")
    return found


def _files(root: Path, name: str) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in paths
        if not any(part == "__pycache__" or part.startswith(".") for part in path.parts[-2:])
    }


def _metadata(installed: Distribution, folder: str) -> dict[str, bytes]:
    """What the installed distribution says of itself."""
    names = ["METADATA", "entry_points.txt"]
    names += [
        "/".join(path.parts[1:])
        for path in installed.files or ()
        if path.parts[0].endswith(".dist-info") and "licenses" in path.parts
    ]
    texts = {name: installed.read_text(name) for name in names}
    found = {f"{folder}/{name}": text.encode() for name, text in texts.items() if text is not None}
    return found | {f"{folder}/WHEEL": _WHEEL.encode()}


def _line(name: str, data: bytes) -> str:
    """A line of RECORD: path, hash, size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"
