"""The source archive: trusted only by its hash, unpacked only where it belongs."""

from __future__ import annotations

import io
import tarfile

import pytest

from deployer.errors import ToolchainError
from deployer.home import Home
from deployer.toolchains import sources
from deployer.toolchains.specs import spec_named


def archive_of(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "../../../outside"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def test_only_the_chosen_parts_of_the_folder_are_unpacked(tmp_path):
    archive = archive_of(
        tmp_path / "a.tar.gz",
        {
            "rel-1/tree/keep.py": b"keep",
            "rel-1/tree/conversion/x.py": b"x",
            "rel-1/tree/models/huge.gguf": b"no",
            "rel-1/setup.py": b"no",
        },
    )
    sources.unpack(archive, "rel-1/tree", ("keep.py", "conversion"), tmp_path / "out")
    found = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")
    )
    assert found == ["conversion/x.py", "keep.py"]


@pytest.mark.parametrize(
    "members",
    [{"rel/tree/conversion/../../../escaped.py": b"x"}, {"rel/tree/conversion/link": None}],
    ids=["traversal", "link"],
)
def test_what_would_leave_the_folder_is_refused(tmp_path, members):
    archive = archive_of(tmp_path / "a.tar.gz", members)
    with pytest.raises(ToolchainError, match="cannot be unpacked"):
        sources.unpack(archive, "rel/tree", ("conversion",), tmp_path / "deep" / "out")
    assert not (tmp_path / "escaped.py").exists()


def test_a_cut_off_archive_is_refused(tmp_path):
    archive = archive_of(tmp_path / "a.tar.gz", {"rel/tree/conversion/x": b"x" * 5000})
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(ToolchainError, match="cannot be unpacked"):
        sources.unpack(archive, "rel/tree", ("conversion",), tmp_path / "out")


def test_an_index_that_gives_other_bytes_is_refused_and_nothing_kept(tmp_path, monkeypatch):
    spec, home = spec_named("convert"), Home(tmp_path)

    def download(source, python, folder, step, log_path):
        (folder / source.archive).write_bytes(b"something else")

    class Step:
        def update(self, **_):
            return

    monkeypatch.setattr(sources, "_download", download)
    with pytest.raises(ToolchainError, match="locked hash"):
        sources.fetch(spec, tmp_path / "python", home, Step(), tmp_path / "log")
    assert list((home.cache / "sources").iterdir()) == []
