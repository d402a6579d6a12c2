"""Start a bundle's server: choose the program, check what can be checked, hand over.

`prepare` does all but the start, for one server or for several that are to share a machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployer.artifacts import Bundle
from deployer.command import Command
from deployer.engines import Launch, ModelToServe, engine_named
from deployer.errors import ServerExited, UsageError
from deployer.facts import find_facts
from deployer.gpus import gpus
from deployer.home import Home
from deployer.machine import available_memory
from deployer.process import which
from deployer.progress import SILENT, Progress
from deployer.recipe import Serve
from deployer.serving import placement, preflight
from deployer.serving.spawning import await_ready, spawn_supervisor
from deployer.serving.spec import Spec
from deployer.serving.state import ALIVE, ServerFolder, ServerRecord
from deployer.serving.supervisor import Supervisor, name_taken
from deployer.toolchains import provision
from deployer.toolchains.worker import WORKERS

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
    for attempt in range(1, PORT_ATTEMPTS + 1):
        spec = prepare(bundle, serve, home, progress, name=name, device=device, base=base)
        try:
            if detach:
                return _detached(spec, folder, progress)
            return Supervisor(spec, folder, progress, on_ready).run()
        except ServerExited as error:
            # A free port that was chosen here may have been taken since; then take another.
            if serve.port != 0 or "took its port" not in error.message or attempt == PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def prepare(
    bundle: Bundle,
    serve: Serve,
    home: Home,
    progress: Progress = SILENT,
    *,
    name: str | None = None,
    device: str = "auto",
    base: Path | None = None,
    reserved: int = 0,
) -> Spec:
    """Check everything that can be checked, and say what is to be run; nothing is started.

    The arguments are those of `start`. `reserved` bytes of memory are promised to servers that
    were prepared before and do not run yet (the `memory_bytes` of their specs). A toolchain that
    is missing is made. The port is free now, and no promise. Raises what `start` raises for what
    cannot be.
    """
    serve = _absolute(serve, base or Path.cwd())
    _check(bundle, serve, progress)
    placed = placement.find(serve.cores, serve.numa_node)
    engine = engine_named(bundle.manifest.engine)
    model = ModelToServe.of(bundle.manifest, bundle.weights.absolute(), device)
    facts = find_facts(engine, home, bool(gpus()))
    facts = replace(facts, cache=home.cache / "compiled", cores=placed.threads or facts.cores)
    needed = engine.memory(model, serve, facts)
    limit = None if serve.memory_limit_gib is None else int(serve.memory_limit_gib * (1 << 30))
    available = _least(available_memory() - reserved, placed.free_memory())
    preflight.check_limit(needed, serve)
    preflight.check_memory(needed, serve, available, reserved)
    facts = replace(facts, spare_memory=_least(available, limit) - needed.total)
    server = engine.choose(serve.server, facts)
    serve = serve.model_copy(update={"port": preflight.take_port(serve.host, serve.port)})
    launch = engine.launch(server, model, serve, facts)
    for warning in launch.warnings:
        progress.warn(warning)
    spec = _spec(name, bundle, serve, launch, *_resolve(launch.command, home, progress))
    return replace(
        spec,
        memory_bytes=needed.total,
        memory_limit=limit,
        cores=placed.cpus,
        numa_node=placed.node,
    )


def _check(bundle: Bundle, serve: Serve, progress: Progress) -> None:
    if serve.api_key_file:
        preflight.read_key(Path(serve.api_key_file), progress)
    preflight.check_exposure(serve.host, serve.api_key_file is not None)
    preflight.check_lora(serve)
    preflight.check_weights(bundle)


def _spec(
    name: str | None,
    bundle: Bundle,
    serve: Serve,
    launch: Launch,
    argv: tuple[str, ...],
    env: dict[str, str],
) -> Spec:
    """What is to be run, still without its place and its memory."""
    manifest = bundle.manifest
    return Spec(
        name=name or manifest.name,
        engine=manifest.engine,
        server=launch.server,
        argv=argv,
        env=env,
        url=local_url(serve.host, serve.port),
        port=serve.port,
        model=manifest.name,
        bundle=str(bundle.root),
        slots=serve.parallel,
        context=serve.context,
        ready_timeout=serve.ready_timeout,
        drain_timeout=serve.drain_timeout,
        drains=launch.drains,
        health=launch.health,
        metrics=launch.metrics,
        key_file=serve.api_key_file,
    )


def _least(size: int, bound: int | None) -> int:
    """The smaller of two sizes in bytes, None is no bound; never below 0."""
    return max(0, size if bound is None else min(size, bound))


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
    child = spawn_supervisor(spec, folder, outlive_us=True)
    try:
        with progress.step(f"Starting {spec.name} ({spec.server})") as step:
            record = await_ready(child, folder, step.update)
    except BaseException:
        child.stop(grace=5.0)  # the supervisor takes its engine with it
        raise
    # It may outlive us; should it end first, this thread keeps it from staying a zombie.
    threading.Thread(target=child.wait, daemon=True).start()
    return record
