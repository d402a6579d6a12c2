"""Serve a bundle: start, wait until ready, watch, drain, stop.

    launching   the command's side: choose, check, start (foreground or detached)
    supervisor  the process that owns the engine; the same in both cases
    readiness   one real token, from our process, for our bundle
    control     status, logs, stop
    preflight   what is checked before a start        causes   why an engine ended
    state       servers/NAME/state.json               identity  who a process is

Nothing here prints; functions return `ServerRecord`s.
"""

from __future__ import annotations

from deployer.serving.control import logs, status, stop
from deployer.serving.launching import start
from deployer.serving.state import ServerRecord

__all__ = ["ServerRecord", "logs", "start", "status", "stop"]
