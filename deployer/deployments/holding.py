"""What a supervisor holds while it lives: its name, and the signals that tell it to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import filelock

from deployer.deployments.state import DeploymentFolder
from deployer.errors import ServerError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def hold_name(folder: DeploymentFolder, name: str) -> Iterator[None]:
    """Hold a deployment's name; the kernel frees it however this process ends.

    Raises ServerError where another process has it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise name_taken(name) from error
    try:
        yield
    finally:
        lock.release()


def name_taken(name: str) -> ServerError:
    return ServerError(
        f"a deployment named {name} runs already",
        f"`deployer reload {name}` changes it; `deployer stop {name}` ends it.",
    )


@contextlib.contextmanager
def counting(signals: list[int]) -> Iterator[None]:
    """Note every signal that tells us to stop in a list; must be used in the main thread."""

    def note(number: int, _frame: object) -> None:
        signals.append(number)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
