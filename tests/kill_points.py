"""SIGKILL at every step that changes a file: a forked child dies at the n-th one.

The steps are seen through the interpreter's audit hook: files opened for writing, folders made,
renames, removals, links, changed modes, and fsync. What a child wrote before it died is on the
disk as it would be after a kill; that a machine without power loses more is not tried.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deployer.store import remove_tree

CALLS = frozenset(
    {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link"}
)
SURVIVED = 42
MOST = 10_000


class Killer:
    """An audit hook: counts what changes files below `root`, and at the n-th step kills us."""

    def __init__(self, root: Path, at: int) -> None:
        self.root = str(root)
        self.left = at

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CALLS and self._is_below(arguments[0]) and _changes(event, arguments):
            self.count()

    def _is_below(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        name = os.fspath(path)
        # A relative name belongs to a folder that is open: a tree that is being removed.
        return isinstance(name, str) and (name.startswith(self.root) or name[:1] != "/")

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _changes(event: str, arguments: tuple[object, ...]) -> bool:
    flags = arguments[2] if event == "open" else os.O_WRONLY
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def killed_at(work: Callable[[], object], root: Path, at: int) -> bool:
    """Do `work` in a child that is killed at its `at`-th step below `root`; whether it was."""

    def begin() -> None:
        killer = Killer(root, at)
        fsync = os.fsync
        os.fsync = lambda descriptor: (killer.count(), fsync(descriptor))[1]
        sys.addaudithook(killer)

    return _dies(work, begin) == signal.SIGKILL


def cut_at(work: Callable[[], object], size: int) -> bool:
    """Do `work` in a child that dies in the middle of the first write beyond `size` bytes.

    The kernel writes what still fits and ends the process at the byte after it, so a file lies
    there half-written.
    """

    def begin() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return _dies(work, begin) == signal.SIGXFSZ


def _dies(work: Callable[[], object], begin: Callable[[], None]) -> int | None:
    """The signal that ended the child, None where it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            begin()
            work()
            code = SURVIVED
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == SURVIVED, "the work failed by itself"
    return None


@dataclass(frozen=True)
class Subject:
    """Something that is published. Every function gets a fresh folder of its own.

    `prepare` makes what was there before; `act` publishes; `look` raises AssertionError unless the
    old or the new is there, whole; `whole` unless the new one is, and nothing half-made.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    look: Callable[[Path], object]
    whole: Callable[[Path], object]


def kill_everywhere(subject: Subject, folder: Path) -> int:
    """Kill at every step in turn, look, and do it again to its end; gives the number of kills."""
    for at in range(1, MOST):
        root = folder / str(at)
        root.mkdir(parents=True)
        subject.prepare(root)
        killed = killed_at(lambda root=root: subject.act(root), root, at)
        _recover(subject, root, killed)
        if not killed:
            return at - 1
    raise AssertionError(f"it has more than {MOST} steps")


def cut_everywhere(subject: Subject, folder: Path, sizes: tuple[int, ...]) -> int:
    """Die in the middle of a write, at several lengths; gives how often it did."""
    cuts = 0
    for size in sizes:
        root = folder / f"cut-{size}"
        root.mkdir(parents=True)
        subject.prepare(root)
        cut = cut_at(lambda root=root: subject.act(root), size)
        cuts += cut
        _recover(subject, root, cut)
    return cuts


def _recover(subject: Subject, root: Path, died: bool) -> None:
    if died:
        subject.look(root)
        subject.act(root)
    subject.whole(root)
    remove_tree(root)
