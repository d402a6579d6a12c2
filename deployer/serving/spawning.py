"""Start a supervisor in a process of its own, and wait until its server is ready."""

from __future__ import annotations

import time
from collections.abc import Callable

from deployer.process import Child
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder, ServerRecord
from deployer.serving.supervised import POLL_SECONDS


def spawn_supervisor(spec: Spec, folder: ServerFolder, *, outlive_us: bool) -> Child:
    """Start the supervisor of one server; it takes its engine with it, however it ends.

    Without `outlive_us` the kernel kills it when the thread that called this ends. Told to stop by
    SIGTERM it drains. What it says goes to the folder's supervisor.log.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    spec.write(folder.spec_file)
    return folder.spawn_supervisor(outlive_us=outlive_us)


def await_ready(
    child: Child, folder: ServerFolder, update: Callable[[float], None]
) -> ServerRecord:
    """Wait until the server of a spawned supervisor is ready; `update` gets the seconds so far.

    Raises what `ready_record` raises. The child is left as it is.
    """
    started = time.monotonic()
    while (record := ready_record(child, folder)) is None:
        update(round(time.monotonic() - started, 1))
        time.sleep(POLL_SECONDS)
    return record


def ready_record(child: Child, folder: ServerFolder) -> ServerRecord | None:
    """The record of a server that is ready, None while it starts.

    Raises ServerExited, ReadinessTimeout or ServerError where it will not be.
    """
    ended = child.poll() is not None
    return folder.started(child, folder.read(), ended)
