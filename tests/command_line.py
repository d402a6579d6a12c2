"""The real `deployer` command, run as a user would, in a home of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from guard import REPOSITORY

from deployer.home import Home

DEPLOYER = Path(sys.executable).parent / "deployer"
SHARED = ("toolchains", "cache")
SECONDS = 1800.0


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, or ends within `seconds`, and so has let go of its files.

    A zombie has, once no thread of it is left: the first may end before the others.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE and len(_threads(pid)) <= 1:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document of standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error of that document."""
        found: dict[str, Any] = self.document["error"]
        return found


def home_beside(shared: Home, root: Path, *more: str) -> Home:
    """A new home that uses the toolchains and downloads of `shared`, and folders named `more`."""
    root.mkdir(parents=True)
    for name in (*SHARED, *more):
        (shared.root / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(shared.root / name, target_is_directory=True)
    return Home(root)


def environment(home: Home, env: Mapping[str, str] | None = None) -> dict[str, str]:
    given = {"DEPLOYER_HOME": str(home.root), "NO_PROXY": "127.0.0.1", **(env or {})}
    kept = {
        name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "FORCE_COLOR")
    }
    # The shared cache of uv, unless the test brings its own.
    return {"UV_CACHE_DIR": str(home.cache / "uv"), **kept, **given}


def deployer(*arguments: str | Path, home: Home, env: Mapping[str, str] | None = None) -> Ran:
    """Run the command to its end; it must never show a traceback."""
    ran = subprocess.run(
        [str(DEPLOYER), *map(str, arguments)], env=environment(home, env), cwd=REPOSITORY,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert "Traceback" not in ran.stdout + ran.stderr, ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def must(*arguments: str | Path, home: Home, env: Mapping[str, str] | None = None) -> Any:
    """The document of a command that has to succeed."""
    ran = deployer(*arguments, "--json", home=home, env=env)
    assert ran.code == 0, ran.err + ran.out
    return ran.document
