"""The supervisor of a deployment: starts servers and gateway, carries reloads out, stops all.

The same code runs in the foreground command and in the process behind a detached deployment. One
thread does all of it: children die with the thread that started them, and this one is the main one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from deployer.deployments.fleet import Fleet
from deployer.deployments.gateway_process import GatewayProcess
from deployer.deployments.spec import DeploymentSpec
from deployer.deployments.state import DeploymentFolder, DeploymentRecord, Reload, State
from deployer.deployments.table import make_table
from deployer.deployments.words import changes
from deployer.durable import write_atomically
from deployer.errors import DeployerError, ReadinessTimeout, ServerError
from deployer.gateway.events import EventLog
from deployer.home import Home
from deployer.progress import SILENT, Progress
from deployer.serving.engine_log import cut
from deployer.serving.holding import counting, hold_name
from deployer.serving.identity import start_mark
from deployer.serving.launching import local_url
from deployer.serving.listening import listen
from deployer.serving.notify import Notify

TICK = 0.1
GATEWAY_SECONDS = 60.0
"""What the gateway gets until it is healthy, once all servers are ready."""
STOP_GRACE = 15.0
"""What a child gets beyond its drain timeout before it is killed."""
HURRIED = 5.0
"""What a server's supervisor gets to end its engine when there is no time to drain."""
CUT_SECONDS = 60.0
LOG_BYTES = 16 << 20
"""What the log of the gateway, and ours, may hold before the old part moves aside; and how often
that is looked at."""
STUCK = 60.0
"""Seconds without a turn of our loop from when on systemd is no longer shown life."""
_FROM_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class DeploymentSupervisor:
    """Runs one deployment until it is told to stop; `run` must be called in the main thread."""

    def __init__(
        self,
        spec: DeploymentSpec,
        home: Home,
        progress: Progress = SILENT,
        on_ready: Callable[[DeploymentRecord], None] | None = None,
    ) -> None:
        self.folder = DeploymentFolder.of(home, spec.name)
        self.progress = progress
        self.on_ready = on_ready
        self._fleet = Fleet(spec, home, EventLog(self.folder.events).write)
        self._gateway: GatewayProcess | None = None
        self._port = 0
        self._signals: list[int] = []
        self._started = self._turned = time.monotonic()
        self._cut_at = self._started
        self._applied_at: float | None = None
        self._stamp: tuple[int, ...] = ()
        self._table = ""
        self._written: DeploymentRecord | None = None
        self._notify = Notify.of(os.environ, os.getpid())
        self.record = DeploymentRecord(
            name=spec.name,
            endpoint="",
            supervisor_pid=os.getpid(),
            gateway_pid=None,
            state="starting",
            **_told_of(spec),
            log=str(self.folder.gateway_log),
            events=str(self.folder.events),
            marks={"supervisor": start_mark(os.getpid())},
        )

    def run(self) -> DeploymentRecord:
        """Serve until SIGTERM or SIGINT; a second one ends it at once.

        Raises ServerError where the name or the port is taken, and where a server or the gateway
        does not come up the first time; later failures degrade the deployment. No process of ours
        is left whenever this returns or raises.
        """
        taken = name_taken(self.record.name)
        with hold_name(self.folder.lock_file, taken), counting(self._signals):
            for name in _FROM_SYSTEMD:
                os.environ.pop(name, None)  # our children are not to tell systemd in our stead
            try:
                self._open()
                while not self._signals:
                    self._turn()
                    time.sleep(TICK)
                self._drain()
            except BaseException as error:
                self._end_all()
                described = error.as_json() if isinstance(error, DeployerError) else None
                self._publish(state="failed", ready_at=None, error=described)
                raise
            self._publish(state="stopped", ready_at=None)
        return self.record

    def _open(self) -> None:
        """Listen, and start the gateway; until servers are ready it answers that there are none."""
        gateway = self._fleet.spec.gateway
        listening = listen(gateway.host, gateway.port, "gateway")
        self._port = int(listening.getsockname()[1])
        url = local_url(gateway.host, self._port)
        if gateway.certificate is not None:
            url = url.replace("http://", "https://", 1)
        self.folder.applied_file.unlink(missing_ok=True)
        self._publish(endpoint=url)
        self._write_table()
        root, log = self.folder.root, self.folder.gateway_log
        self._gateway = GatewayProcess(root, log, listening, url)
        self._gateway.start()
        self._notify.watch(lambda: time.monotonic() - self._turned < STUCK)

    def _turn(self) -> None:
        """See how everything is, do what there is to do, and write down what changed."""
        assert self._gateway is not None
        self._turned = time.monotonic()
        self._gateway.look()
        self._fleet.look()
        self._read_spec()
        self._move()
        if not self._gateway.was_healthy:
            self._check_gateway(self._gateway)
        # What cannot be written now (a full disk) is written at a later turn; servers go on.
        with contextlib.suppress(OSError):
            self._write_table()
        self._end_reload(self._gateway)
        self._publish(state=self._state())
        if self._turned - self._cut_at > CUT_SECONDS:
            self._cut_at = self._turned
            for log in (self.folder.gateway_log, self.folder.supervisor_log):
                cut(log, LOG_BYTES)

    def _read_spec(self) -> None:
        """Take up a spec that a reload has written, once there is something to reload."""
        if self._fleet.applied is None:
            return
        try:
            found = os.stat(self.folder.spec_file)  # noqa: PTH116 (ten times a second)
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            spec = DeploymentSpec.read(self.folder.spec_file)
        except (OSError, ValueError):
            return
        self._stamp = stamp
        latest = self._fleet.wanted or self._fleet.applied
        refused = self._fleet.refused.spec.generation if self._fleet.refused else 0
        if spec.generation > max(latest.generation, refused):
            self._fleet.wanted = spec
            self._publish(reload=Reload(generation=spec.generation, state="under way"))

    def _move(self) -> None:
        """Let the fleet act, and tell where a spec was applied or refused by that."""
        applied, refused = self._fleet.applied, self._fleet.refused
        assert self._gateway is not None
        self._fleet.act(self._gateway.generation)
        now_refused = self._fleet.refused
        if now_refused is not None and now_refused is not refused:
            if self._fleet.applied is None:
                raise now_refused.error
            self._publish(
                reload=Reload(
                    generation=now_refused.spec.generation,
                    state="failed",
                    starting=now_refused.servers,
                    error=now_refused.error.as_json(),
                )
            )
        spec = self._fleet.applied
        if spec is not None and spec is not applied:
            self._gateway.expected = spec.generation
            self._applied_at = time.monotonic()
            with contextlib.suppress(OSError):
                spec.write(self.folder.applied_file)
            self._publish(**_told_of(spec))

    def _end_reload(self, gateway: GatewayProcess) -> None:
        """Tell that a reload is done once the gateway goes by it, or that it does not."""
        reload, since = self.record.reload, self._applied_at
        if reload is None or reload.state != "under way" or since is None:
            return
        if reload.generation != self.record.generation:
            return  # its servers start yet
        done = reload.model_copy(update={"state": "done"})
        if gateway.generation >= reload.generation:
            self._publish(reload=done)
        elif time.monotonic() - since > GATEWAY_SECONDS:
            error = ServerError(
                "the new servers run, but the gateway has not taken up the new routes",
                f"Log: {self.folder.gateway_log}",
            )
            self._publish(reload=done.model_copy(update={"error": error.as_json()}))

    def _check_gateway(self, gateway: GatewayProcess) -> None:
        """Raises ServerError where the gateway cannot be had at all."""
        log = f"Log: {self.folder.gateway_log}"
        if not gateway.runs:
            raise ServerError(f"the gateway ended: {gateway.last_words or 'it said nothing'}", log)
        since = self._applied_at
        if since is not None and time.monotonic() - since > GATEWAY_SECONDS:
            raise ReadinessTimeout(
                f"the gateway was not healthy within {GATEWAY_SECONDS:.0f} s", log
            )

    def _state(self) -> State:
        gateway = self._gateway
        if self._fleet.applied is None or gateway is None or not gateway.was_healthy:
            return "starting"
        return "ready" if self._fleet.all_ready and gateway.healthy else "degraded"

    def _write_table(self) -> None:
        """Write the table where it is another one than before."""
        table = make_table(self._fleet.spec, self._port, self._fleet.standing())
        text = table.model_dump_json()
        if text != self._table:
            write_atomically(self.folder.table_file, text)
            self._table = text

    def _publish(self, **changed: Any) -> None:
        """Bring the record up to date, and write it where it is another one than before."""
        before = self.record
        changed = {**self._seen_now(), **changed}
        becomes_ready = before.ready_seconds is None and changed.get("state") == "ready"
        if becomes_ready:
            now = time.monotonic()
            changed.update(ready_at=now, ready_seconds=round(now - self._started, 3))
        self.record = before.model_copy(update=changed)
        if self.record != self._written:
            with contextlib.suppress(OSError):
                self.folder.write(self.record)
                self._written = self.record
        for line in changes(before, self.record):
            self.progress.note(line)
        if self.record.state != before.state:
            self._tell_systemd(becomes_ready)
        if becomes_ready and self.on_ready:
            self.on_ready(self.record)

    def _seen_now(self) -> dict[str, Any]:
        """What of the record only looking tells."""
        gateway, reload = self._gateway, self.record.reload
        if reload and reload.state == "under way":
            reload = reload.model_copy(update={"starting": self._fleet.describe_new()})
        return {
            "servers": self._fleet.describe(),
            "retiring": self._fleet.retiring,
            "gateway_pid": gateway.pid if gateway else None,
            "gateway_restarts": max(0, gateway.starts - 1) if gateway else 0,
            "reload": reload,
        }

    def _tell_systemd(self, becomes_ready: bool) -> None:
        state = self.record.state
        told = ["READY=1"] if becomes_ready else ["STOPPING=1"] if state == "draining" else []
        self._notify.tell(*told, f"STATUS={state}")

    def _drain(self) -> None:
        """Let the gateway finish what it has, then stop the servers; at once at a second signal."""
        gateway = self._gateway
        assert gateway is not None
        self._publish(state="draining")
        gateway.stop()
        self._await(lambda: not gateway.runs, self.record.drain_timeout + STOP_GRACE)
        gateway.kill()
        if len(self._signals) == 1:
            self._fleet.stop()
            self._await(lambda: self._fleet.all_ended, self._fleet.longest_drain + STOP_GRACE)
        self._end_all()

    def _await(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until it is done, for `seconds` at most; no longer after a second signal."""
        end = time.monotonic() + seconds
        while not done() and len(self._signals) < 2 and time.monotonic() < end:
            self._turned = time.monotonic()
            time.sleep(TICK / 2)

    def _end_all(self) -> None:
        """End every process of ours that still runs, without waiting for requests."""
        if self._gateway is not None:
            self._gateway.kill()
        end = time.monotonic() + HURRIED
        for _ in range(2):  # a server's supervisor that is told twice ends its engine at once
            if not self._fleet.all_ended:
                self._fleet.stop()
                time.sleep(TICK)
        while not self._fleet.all_ended and time.monotonic() < end:
            time.sleep(TICK / 2)
        self._fleet.kill()
        self._fleet.look()


def _told_of(spec: DeploymentSpec) -> dict[str, Any]:
    """What the record says of the spec that runs."""
    return {
        "generation": spec.generation,
        "file": spec.origin.file,
        "models": tuple(route.model for route in spec.routes),
        "keys": spec.gateway.keys is not None,
        "drain_timeout": spec.gateway.drain_timeout,
    }


def name_taken(name: str) -> ServerError:
    return ServerError(
        f"a deployment named {name} runs already",
        f"`deployer reload {name}` changes it; `deployer stop {name}` ends it.",
    )
