"""Start a bundle's server: choose the program, check what can be checked, hand over."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployer.artifacts import Bundle
from deployer.command import Command
from deployer.engines import Launch, ModelToServe, engine_named
from deployer.errors import (
    DeployerError,
    ReadinessTimeout,
    ServerError,
    ServerExited,
    UsageError,
)
from deployer.facts import find_facts
from deployer.gpus import gpus
from deployer.home import Home
from deployer.machine import available_memory
from deployer.process import Child, clean_environment, spawn, tail, which
from deployer.progress import SILENT, Progress
from deployer.recipe import Serve
from deployer.serving import preflight
from deployer.serving.state import ALIVE, ServerFolder, ServerRecord
from deployer.serving.supervisor import Spec, Supervisor, name_taken
from deployer.toolchains import provision
from deployer.toolchains.worker import WORKERS

POLL_SECONDS = 0.05
PORT_ATTEMPTS = 3


def start(
    bundle: Bundle,
    serve: Serve,
    home: Home,
    progress: Progress = SILENT,
    *,
    name: str | None = None,
    device: str = "auto",
    detach: bool = False,
    base: Path | None = None,
    on_ready: Callable[[ServerRecord], None] | None = None,
) -> ServerRecord:
    """Serve a bundle.

    Detached, returns the server's record once it is ready. In the foreground, calls `on_ready`
    with it, serves until SIGTERM or SIGINT, and returns the last record; must then be called in
    the main thread. `name` is the server's name (default: the bundle's), `base` the folder that
    the files `serve` names are relative to (default: the current one).

    Raises UsageError and PlanError for what cannot be, ToolchainError where the server's program
    cannot be had, ServerExited, ReadinessTimeout or ServerError where it does not come up.
    """
    folder = ServerFolder.of(home, name or bundle.manifest.name)
    running = folder.current()
    if running is not None and running.state in ALIVE:
        raise name_taken(running.name)
    serve = _absolute(serve, base or Path.cwd())
    if serve.api_key_file:
        preflight.read_key(Path(serve.api_key_file), progress)
    preflight.check_exposure(serve.host, serve.api_key_file is not None)
    preflight.check_lora(serve)
    preflight.check_weights(bundle)

    engine = engine_named(bundle.manifest.engine)
    model = ModelToServe.of(bundle.manifest, bundle.weights.absolute(), device)
    facts = find_facts(engine, home, bool(gpus()))
    facts = replace(facts, cache=home.cache / "compiled")
    available, needed = available_memory(), engine.memory(model, serve, facts)
    preflight.check_memory(needed, serve, available)
    facts = replace(facts, spare_memory=available - needed.total)
    server = engine.choose(serve.server, facts)
    for attempt in range(1, PORT_ATTEMPTS + 1):
        port = preflight.take_port(serve.host, serve.port)
        chosen = serve.model_copy(update={"port": port})
        launch = engine.launch(server, model, chosen, facts)
        spec = _spec(folder.root.name, bundle, chosen, launch, home, progress)
        try:
            if detach:
                return _detached(spec, folder, progress)
            return Supervisor(spec, folder, progress, on_ready).run()
        except ServerExited as error:
            # A free port that was chosen here may have been taken since; then take another.
            if serve.port != 0 or "took its port" not in error.message or attempt == PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _absolute(serve: Serve, base: Path) -> Serve:
    """The same settings with absolute paths."""
    changes: dict[str, Any] = {}
    if serve.api_key_file is not None:
        changes["api_key_file"] = str((base / serve.api_key_file).absolute())
    if serve.vllm.lora:
        adapters = tuple(
            adapter.model_copy(update={"path": str((base / adapter.path).absolute())})
            for adapter in serve.vllm.lora
        )
        changes["vllm"] = serve.vllm.model_copy(update={"lora": adapters})
    return serve.model_copy(update=changes)


def _spec(
    name: str, bundle: Bundle, serve: Serve, launch: Launch, home: Home, progress: Progress
) -> Spec:
    for warning in launch.warnings:
        progress.warn(warning)
    argv, env = _resolve(launch.command, home, progress)
    return Spec(
        name=name,
        server=launch.server,
        argv=argv,
        env=env,
        url=local_url(serve.host, serve.port),
        port=serve.port,
        model=bundle.manifest.name,
        bundle=str(bundle.root),
        ready_timeout=serve.ready_timeout,
        drain_timeout=serve.drain_timeout,
        drains=launch.drains,
        health=launch.health,
        metrics=launch.metrics,
        key_file=serve.api_key_file,
    )


def local_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _resolve(
    command: Command, home: Home, progress: Progress
) -> tuple[tuple[str, ...], dict[str, str]]:
    """A command's complete argv and its environment; its toolchain is made if need be."""
    env = dict(command.env)
    if command.toolchain is None:
        program = which(command.program)
        if program is None:
            raise UsageError(f"{command.program} is not on PATH", "Install it.")
        return (str(program), *command.arguments), env
    toolchain = provision.ensure(command.toolchain, home, progress)
    if command.worker is None:
        return (str(toolchain.program(command.program)), *command.arguments), env
    script = WORKERS / f"{command.worker}.py"
    return (str(toolchain.python), "-I", str(script), *command.arguments), env


def _detached(spec: Spec, folder: ServerFolder, progress: Progress) -> ServerRecord:
    """Start a supervisor of its own and wait until its server is ready."""
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.supervisor_log.unlink(missing_ok=True)
    spec.write(folder.spec_file)
    argv = (sys.executable, "-m", "deployer.serving", str(folder.root))
    child = spawn(
        argv,
        env=clean_environment(),
        log_path=folder.supervisor_log,
        cwd=folder.root,
        outlive_us=True,
    )
    try:
        with progress.step(f"Starting {spec.name} ({spec.server})") as step:
            record = _await_ready(child, spec, folder, step.update)
    except BaseException:
        child.stop(grace=5.0)  # the supervisor takes its engine with it
        raise
    # It may outlive us; should it end first, this thread keeps it from staying a zombie.
    threading.Thread(target=child.wait, daemon=True).start()
    return record


def _await_ready(
    child: Child, spec: Spec, folder: ServerFolder, update: Callable[[float], None]
) -> ServerRecord:
    started = time.monotonic()
    while True:
        ended = child.poll() is not None
        record = folder.read()
        ours = record if record and record.supervisor_pid == child.pid else None
        if ours and ours.state == "ready":
            return ours
        if ours and ours.state == "failed":
            raise _as_error(ours.error, spec, folder)
        if ended:
            if ours and ours.state == "stopped":
                raise ServerError(f"{spec.name} was stopped before it was ready")
            raise _as_error(None, spec, folder)
        update(round(time.monotonic() - started, 1))
        time.sleep(POLL_SECONDS)


def _as_error(error: dict[str, Any] | None, spec: Spec, folder: ServerFolder) -> DeployerError:
    """The error a supervisor recorded, else one with the last words it wrote."""
    if error is None:
        words = tail(folder.supervisor_log, 5)
        return ServerError(
            f"the supervisor of {spec.name} ended: {words or 'it said nothing'}",
            f"Log: {folder.supervisor_log}",
        )
    kinds = {kind.__name__: kind for kind in (ServerExited, ReadinessTimeout)}
    kind = kinds.get(str(error.get("type")), ServerError)
    return kind(str(error.get("message", "")), str(error.get("hint", "")))
