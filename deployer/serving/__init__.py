"""Serve a bundle: start, wait until ready, watch, drain, stop.

    launching   the command's side: choose, check, prepare a spec, start (foreground or detached)
    spec        what is to be run             spawning    a supervisor in a process of its own
    supervisor  the process that owns the engine; the same in both cases
    engine_run  one run of the engine         restarts    when there is another one
    checkup     looks after a running engine: health (is it alive?), memory, engine_log
    readiness   one real token, from our process, for our bundle
    control     status, logs, stop
    preflight   what is checked before a start: also listening (address), placement (CPUs, node)
    causes      why an engine ended
    state       servers/NAME/state.json       identity    who a process is
    supervised  record and folder of what runs under a supervisor, deployments too
    holding     what a supervisor holds: name, signals, log

Nothing here prints; functions return `ServerRecord`s.
"""

from __future__ import annotations

from deployer.serving.control import logs, status, stop
from deployer.serving.launching import prepare, start
from deployer.serving.spawning import await_ready, spawn_supervisor
from deployer.serving.spec import Spec
from deployer.serving.state import ServerRecord

__all__ = [
    "ServerRecord", "Spec", "await_ready", "logs", "prepare", "spawn_supervisor", "start",
    "status", "stop",
]  # fmt: skip
