"""A worker of a load test that another machine leads: takes jobs until there are no more."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

import deployer
from deployer import process
from deployer.errors import CommandError, LoadTestError, UsageError
from deployer.loadtest import driver
from deployer.loadtest.leading import HOLD_S
from deployer.progress import Progress
from deployer.results import LOG, TOLD

ANSWER_S = HOLD_S + 20.0
TELLING_S = 2.0


class Joined:
    """One worker, by its own name, at a leader's address."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.path.strip("/"):
            raise UsageError(
                f"{url!r} is no leader's address",
                "Copy it from what `deployer loadtest --listen HOST:PORT` says.",
            )
        self.host = parts.hostname
        self.url = url.rstrip("/")
        self.name = secrets.token_hex(4)
        self.http = http

    def job(self, after: int) -> Mapping[str, Any] | None:
        """The job after number `after`, as soon as there is one; None when it is over."""
        while True:
            try:
                answer = self.http.get(
                    f"{self.url}/job", params={"name": self.name, "after": after}
                )
            except httpx.HTTPError as error:
                if after:
                    return None  # the leader has gone, as it does in the end
                raise LoadTestError(
                    f"nobody leads a load test at {self.url}: {error or type(error).__name__}",
                    "Start it there first: deployer loadtest --workers N --listen HOST:PORT",
                ) from error
            if answer.status_code == 200:
                return _checked(answer)
            if answer.status_code == 410:
                return None
            if answer.status_code != 204:
                raise LoadTestError(*_REFUSALS.get(answer.status_code, _NO_LEADER))

    def tell(self, line: str) -> None:
        """Pass on a line of progress; one that is lost is no harm."""
        try:
            self.http.post(
                f"{self.url}/progress", params={"name": self.name}, content=line, timeout=TELLING_S
            )
        except httpx.HTTPError:
            return

    def bring(self, folder: Path) -> None:
        """Bring the leader what this worker measured in `folder`."""
        reports = list(folder.glob("worker-*.json"))
        if len(reports) != 1:
            raise LoadTestError(
                "the load test ended before this worker had", "See what the leader says."
            )
        report = reports[0].read_text("utf-8")
        requests = "".join(path.read_text("utf-8") for path in folder.glob("samples-*.jsonl"))
        age = time.monotonic() - json.loads(report)["started"]
        try:
            self.http.post(
                f"{self.url}/measured", params={"name": self.name, "age": age},
                content=f"{report}\n{requests}", timeout=None,
            ).raise_for_status()  # fmt: skip
        except httpx.HTTPError as error:
            raise LoadTestError(
                f"the leader did not take what was measured: {error}", "See what it says."
            ) from error


_NO_LEADER = ("no load test is led at this address", "Copy the whole address, with its last part.")
_REFUSALS = {
    409: ("this load test has all its workers", "Start it with more --workers."),
    404: _NO_LEADER,
}


def join(url: str, progress: Progress, key: str | None = None) -> int:
    """Work for the leader at `url` until its load test is over; gives how many loads there were.

    The key of the server under test is this machine's own: `key`, or from the environment.
    """
    with httpx.Client(timeout=ANSWER_S, trust_env=False) as http:
        joined = Joined(url, http)
        progress.note(f"Waiting for work from {joined.host}")
        done = 0
        while job := joined.job(after=done):
            with (
                tempfile.TemporaryDirectory(prefix="deployer-loadtest-") as scratch,
                progress.step(f"Load {job['number']} on {job['settings']['endpoint']}"),
            ):
                _work(joined, job, Path(scratch), key)
            done = int(job["number"])
    return done


def _work(joined: Joined, job: Mapping[str, Any], folder: Path, key: str | None) -> None:
    driver.tell(job["settings"], job["plan"], folder)
    argv = [
        sys.executable, "-m", "locust", "-f", str(driver.locustfile()), "--worker",
        "--master-host", joined.host, "--master-port", str(job["locust_port"]),
        "--stop-timeout", str(driver.DRAIN_S), "--exit-code-on-error", "0",
    ]  # fmt: skip

    def on_line(line: str) -> None:
        if line.startswith("progress {"):
            joined.tell(line)

    try:
        process.run(
            argv, env=driver.environment(folder / TOLD, key), log_path=folder / LOG, cwd=folder,
            on_line=on_line,
        )  # fmt: skip
    except CommandError as error:
        raise LoadTestError(
            f"Locust failed: {error.message}\n{error.tail}", "See what the leader says."
        ) from error
    joined.bring(folder)


def _checked(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        job = dict(answer.json())
        version = job["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise LoadTestError(*_NO_LEADER) from error
    if version != deployer.__version__:
        raise LoadTestError(
            f"the leader is deployer {version}, this is {deployer.__version__}",
            "Install the same version on both.",
        )
    return job
