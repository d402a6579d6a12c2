"""Bundles that come from elsewhere: folders, tar files, signatures."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import bundle_files
from fuzzing import Target, Wrong
from mutating import mutate_bytes, mutate_json, pack, unpack
from small_bundle import small_bundle

from deployer.artifacts import MANIFEST, Bundle
from deployer.memo import DigestMemo
from deployer.progress import SILENT
from deployer.shipping import tar
from deployer.shipping.archive import open_archive
from deployer.shipping.contents import contents_of
from deployer.verification import Check, Examined
from deployer.verification.reading import Unreadable
from deployer.verification.signature import compare, parse_signature
from targets.folders import lay_out, misplace


@cache
def _bundle(engine: str) -> dict[str, bytes]:
    """The files of a whole bundle."""
    with tempfile.TemporaryDirectory() as folder:
        root = bundle_files.write_bundle(Path(folder) / "b", engine)
        return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


FORGED = "forged"
"""A packed bundle with this file was sealed anew after it was changed, as a forger would."""


def _broken_bundle(rng: random.Random) -> bytes:
    files = dict(_bundle(rng.choice(("llama.cpp", "vllm"))))
    forged = rng.random() < 0.5
    names = [name for name in files if not (forged and name == MANIFEST)]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([MANIFEST, *names] if not forged else names)
        if name.endswith(".json") and rng.random() < 0.6:
            files[name] = mutate_json(rng, json.loads(_bundle_file(name)))
        else:
            files[name] = mutate_bytes(rng, files[name])
    return pack({**files, FORGED: b"1"} if forged else files)


def _bundle_file(name: str) -> bytes:
    return next(files[name] for files in map(_bundle, ("llama.cpp", "vllm")) if name in files)


def _check_bundle(data: bytes, folder: Path) -> bool:
    files = unpack(data)
    forged = files.pop(FORGED, None)
    root = folder / "b"
    root.mkdir()
    lay_out(pack(files), root)
    if forged:
        bundle_files.seal(root, "llama.cpp" if "model.gguf" in files else "vllm")
    check = Check(
        DigestMemo(folder / "memo.json"), Examined(folder / "examined.json"),
        render=lambda _template, _must: None,
    )  # fmt: skip
    good = not check(root).faults
    if good and not forged and files not in (_bundle("llama.cpp"), _bundle("vllm")):
        raise Wrong("a bundle that was changed after it was sealed is called good")
    return good


def _signature(rng: random.Random) -> bytes:
    digests = {"model.gguf": "ab" * 32, MANIFEST: "cd" * 32}
    payload = mutate_json(rng, bundle_files.statement(digests))
    document = bundle_files.signature_document(payload)
    if rng.random() < 0.5:
        return mutate_json(rng, document)
    return bundle_files.signature_text(document)


def _check_signature(data: bytes, _folder: Path) -> bool:
    return not compare(parse_signature(data), {"model.gguf": "ab" * 32, MANIFEST: "cd" * 32})


@cache
def _tars() -> tuple[bytes, ...]:
    """Our own tar of a small bundle, and the same files as other programs write them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "b", signature='{"made": "up"}')
        own = Path(folder) / "own.tar"
        tar.write(bundle, own, SILENT)
        return (own.read_bytes(), *(_foreign(bundle, kind) for kind in (
            tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))  # fmt: skip


def _foreign(bundle: Bundle, kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as written:
        for path in sorted(bundle.root.iterdir()):
            info = tarfile.TarInfo(f"top/{path.name}")
            info.size = path.stat().st_size
            info.pax_headers = {"comment": "x" * 200, "mtime": "1.5"}
            written.addfile(info, io.BytesIO(path.read_bytes()))
    return stream.getvalue()


def _broken_tar(rng: random.Random) -> bytes:
    whole = rng.choice(_tars())
    if rng.random() < 0.4:
        return mutate_bytes(rng, whole, _tars())
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_header(rng, data)
    return bytes(data)


FIELDS = {
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1),
    "link": (157, 100), "magic": (257, 8), "prefix": (345, 155),
}  # fmt: skip
"""Where each field of a tar header begins, and its length."""
NAMES = (b"../../x", b"/etc/passwd", b"top/../../x", b"top", b"top/", b"", b"other/x", b"top/a\\b",
         b"top/manifest.json", b"top/" + b"a/" * 40 + b"x", b"\xff\xfe", b"top/./x")  # fmt: skip
SIZES = (b"77777777777", b"00000000000", b"-0000000001", b"\x80" + b"\xff" * 11,
         b"\x80\0\0\0\x7f" + b"\xff" * 7, b"zz", b"00000100000")  # fmt: skip


def _change_header(rng: random.Random, data: bytearray) -> None:
    """Lie in one field of one header; mostly the checksum is made true again."""
    headers = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = rng.choice(headers)
    field = rng.choice(tuple(FIELDS))
    start, size = FIELDS[field]
    values = {
        "name": NAMES, "link": NAMES, "size": SIZES, "mtime": SIZES,
        "type": tuple(b"0123456789gxLKSVDMAN\0"[i : i + 1] for i in range(21)),
    }.get(field, (rng.randbytes(size),))  # fmt: skip
    data[at + start : at + start + size] = rng.choice(values)[:size].ljust(size, b"\0")
    if rng.random() < 0.9:
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _check_tar(data: bytes, folder: Path) -> bool:
    path, out = folder / "x.tar", folder / "out"
    path.write_bytes(data)
    out.mkdir()
    with open_archive(path) as archive:
        contents = contents_of(archive)
        contents.unpack_bundle(out, SILENT.step("").__enter__())
    if {each.name for each in folder.iterdir()} != {"x.tar", "out"}:
        raise Wrong("something was written beside the folder")
    written = [each for each in out.rglob("*") if not each.is_dir()]
    if any(each.is_symlink() for each in written):
        raise Wrong("a link was unpacked")
    if sum(each.stat().st_size for each in written) > len(data):
        raise Wrong("more was unpacked than the archive holds")
    return True


def _loose(rng: random.Random) -> bytes:
    """A folder as somebody unpacked it by hand."""
    files = dict(_bundle("llama.cpp"))
    for _ in range(rng.choice((1, 2))):
        name = rng.choice(list(files))
        if rng.random() < 0.4:
            misplace(rng, files, name)
        elif name == MANIFEST:
            files[name] = mutate_json(rng, json.loads(_bundle_file(name)))
        else:
            files[name] = mutate_bytes(rng, files[name])
    return pack(files)


def _check_loose(data: bytes, folder: Path) -> bool:
    source, out = folder / "in", folder / "out"
    source.mkdir()
    out.mkdir()
    lay_out(data, source)
    with open_archive(source) as archive:
        contents_of(archive).unpack_bundle(out, SILENT.step("").__enter__())
    if any(each.is_symlink() for each in out.rglob("*")):
        raise Wrong("a link was copied")
    return True


BUNDLES = (
    Target("bundle", "verification.Check (manifest and files)", _broken_bundle, _check_bundle, ()),
    Target(
        "signature",
        "verification.signature.parse_signature",
        _signature,
        _check_signature,
        (Unreadable,),
    ),
    Target("tar", "shipping.archive.open_archive, contents_of, unpack", _broken_tar, _check_tar),
    Target("folder", "shipping.archive.open_archive of a folder", _loose, _check_loose),
)
