"""A bundle that is served for as long as something is asked of it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deployer import serving
from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.progress import Progress
from deployer.recipe import Serve
from deployer.serving import ServerRecord
from deployer.workflow.verifying import require_whole


@contextmanager
def served(
    bundle: Bundle, serve: Serve, home: Home, progress: Progress, purpose: str
) -> Iterator[ServerRecord]:
    """The bundle's ready server; stopped when the context is left, also by SIGTERM or Ctrl-C.

    The bundle is verified first. The server is named after `purpose`; its folder with the log goes
    too, unless it failed.
    """
    require_whole(bundle, home, progress)
    manifest = bundle.manifest
    device = str(manifest.recipe.get("target", {}).get("device", "auto"))
    name = f"{purpose}-{manifest.name[:40]}-{os.getpid()}-{secrets.token_hex(2)}"
    with _ended_by_sigterm():
        record = serving.start(
            bundle, serve, home, progress, name=name, device=device, detach=True
        )  # fmt: skip
        try:
            yield record
        finally:
            serving.stop(home, name, progress)
        shutil.rmtree(home.servers / name, ignore_errors=True)


def on_loopback(serve: Serve) -> Serve:
    """Serve settings for this machine alone: a free port of the loopback, no key."""
    return serve.model_copy(update={"host": "127.0.0.1", "port": 0, "api_key_file": None})


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that a server is stopped on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
