"""An archive may come from anybody: plain files inside one folder, or a clear refusal."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import StoreError
from deployer.shipping import archive as module
from deployer.shipping.archive import open_archive, read_small

Change = Callable[[tarfile.TarInfo], object]


def info(name: str, size: int = 0, **attributes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def tar_of(path: Path, *members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file whose members hold nothing but `x`; their headers may say anything."""
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def names_in(path: Path) -> set[str]:
    with open_archive(path) as archive:
        return set(archive.sizes)


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as raised, open_archive(path) as archive:
        for name in archive.sizes:
            read_small(archive, name, 1 << 20)
    assert raised.value.hint
    return raised.value.message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_of_a_tar_by_their_path_below_its_folder(tmp_path: Path, form: int) -> None:
    long = "b/" + "n" * 99
    folder = info("top", type=tarfile.DIRTYPE)
    path = tar_of(tmp_path / "a.tar", folder, info("top/a", 3), info(f"top/{long}", 0), form=form)
    with open_archive(path) as archive:
        assert archive.sizes == {"a": 3, long: 0}
        assert read_small(archive, "a", 3) == b"xxx"
        assert read_small(archive, long, 0) == b""
        with pytest.raises(StoreError, match="a has 3 bytes, over 2"):
            read_small(archive, "a", 2)


def test_a_large_file_comes_in_pieces(tmp_path: Path) -> None:
    size = 3 * module.CHUNK + 5
    path = tar_of(tmp_path / "a.tar", info("top/a", size))
    with open_archive(path) as archive:
        pieces = list(archive.chunks("a"))
    assert max(map(len, pieces)) <= module.CHUNK
    assert b"".join(pieces) == b"x" * size


@pytest.mark.parametrize(
    "name",
    ["../x", "top/../../x", "/etc/x", "top//x", "top/./x", "top/a\\b", "top/a\nb", "top/",
     "top/" + "n" * 600, "top" + "/d" * 9],
)  # fmt: skip
def test_paths_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    member = info(name)
    assert refusal(tar_of(tmp_path / "a.tar", info("top/a"), member)).startswith("a.tar cannot be")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
     tarfile.CONTTYPE, b"Z"],
)  # fmt: skip
def test_only_plain_files(tmp_path: Path, kind: bytes) -> None:
    member = info("top/model.gguf", type=kind, linkname="/etc/passwd")
    assert "no plain file" in refusal(tar_of(tmp_path / "a.tar", info("top/a"), member))


def test_a_sparse_file(tmp_path: Path) -> None:
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.size": "1", "GNU.sparse.map": "0,1"}
    member = info("top/a", 1, pax_headers=sparse)
    assert "no plain file" in refusal(tar_of(tmp_path / "a.tar", member))


def test_a_name_twice(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", info("top/a", 1), info("top/a", 2))
    assert "twice" in refusal(path)


@pytest.mark.parametrize("names", [[], ["a"], ["one/a", "two/a"], ["top/a", "b"]])
def test_exactly_one_folder(tmp_path: Path, names: list[str]) -> None:
    assert "exactly one folder" in refusal(tar_of(tmp_path / "a.tar", *map(info, names)))


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    members = [info(f"top/{n}") for n in range(4)]
    assert "more than 3 files" in refusal(tar_of(tmp_path / "a.tar", *members))
    folders = [info(f"top/{n}", type=tarfile.DIRTYPE) for n in range(7)]
    assert "more than 3 files" in refusal(tar_of(tmp_path / "a.tar", *folders))


def test_a_header_that_asks_for_much_memory(tmp_path: Path) -> None:
    member = info("top/a", pax_headers={"comment": "c" * (2 * module.CHUNK)})
    assert "a header is too long" in refusal(tar_of(tmp_path / "a.tar", member))


def test_headers_without_end(tmp_path: Path) -> None:
    """Each of 3000 headers is for the next one."""
    header = info("h", pax_headers={"comment": "c"}).tobuf(tarfile.PAX_FORMAT)[:1024]
    (tmp_path / "a.tar").write_bytes(header * 3000)
    assert "no sound" in refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [-1, -(2**40), 2**60])
def test_sizes_that_cannot_be(tmp_path: Path, size: int) -> None:
    header = info("top/a", size).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(2048))
    refusal(tmp_path / "a.tar")


@pytest.mark.parametrize("kept", [100, 512, 600, 1024, 1536])
def test_a_file_that_is_cut_short(tmp_path: Path, kept: int) -> None:
    path = tar_of(tmp_path / "a.tar", info("top/a", 700), info("top/b", 700))
    path.write_bytes(path.read_bytes()[:kept])
    refusal(path) if kept != 1536 else names_in(path)


@pytest.mark.parametrize(
    "content", [b"", b"no tar", gzip.compress(b"x" * 600, mtime=0), bytes(10240)]
)
def test_what_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    refusal(tmp_path / "a.tar")


@given(places=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=20))
def test_any_damage_is_read_or_refused(
    places: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tar_of(
        tmp_path_factory.mktemp("damage") / "a.tar",
        info("top/ä", 700), info("top/b", 20, pax_headers={"comment": "c"}),
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[place] = value
    path.write_bytes(content)
    try:
        with open_archive(path) as archive:
            for name in archive.sizes:
                read_small(archive, name, 1 << 20)
    except StoreError:
        pass


def test_a_folder_is_held_to_the_same_rules(tmp_path: Path) -> None:
    root = tmp_path / "unpacked"
    (root / "bundle").mkdir(parents=True)
    (root / "bundle" / "a").write_bytes(b"abc")
    (root / "b").touch()
    with open_archive(root) as archive:
        assert archive.sizes == {"b": 0, "bundle/a": 3}
        assert read_small(archive, "bundle/a", 3) == b"abc"
    (root / "link").symlink_to("b")
    assert refusal(root) == "unpacked cannot be imported: link is no plain file"
    (root / "link").unlink()
    os.mkfifo(root / "bundle" / "pipe")
    assert "bundle/pipe is no plain file" in refusal(root)


def test_a_folder_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "in").symlink_to(tmp_path / "secret")
    assert "in is no plain file" in refusal(tmp_path / "root")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open_archive(tmp_path) as archive:
        (tmp_path / "a").write_bytes(b"a")
        with pytest.raises(StoreError, match="a is cut short"):
            read_small(archive, "a", 3)


def test_what_goes_wrong_outside_is_not_the_archives_fault(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="disk full"), open_archive(tmp_path):
        raise OSError("disk full")
