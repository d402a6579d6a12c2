"""A systemd of a test's own: process 1 of new namespaces, with the units of one folder. Needs root.

The network is the machine's. All else that it changes lies below the folder, or vanishes with the
namespaces: /run, /var/lib, the control groups.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SYSTEMD = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "shutdown", "umount", "network", "network-online", "multi-user")
USER_ID = 64321
BOOT_SECONDS = 30
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind "$1/lib" /var/lib
export container=private SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH=/nonexistent
exec "$2" --system --unit=multi-user.target --log-target=console --show-status=0
"""


@dataclass(frozen=True)
class PrivateSystemd:
    """`units` and `lib` (its /var/lib) lie in the machine's own tree."""

    folder: Path
    pid: int

    @property
    def units(self) -> Path:
        return self.folder / "units"

    @property
    def lib(self) -> Path:
        return self.folder / "lib"

    def systemctl(self, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "systemctl", "--no-pager"]
        return subprocess.run(
            [*inside, *arguments], capture_output=True, text=True, timeout=seconds, check=False
        )

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).stdout.strip()


@contextmanager
def booted(folder: Path, user: str) -> Iterator[PrivateSystemd]:
    """Run it until the context is left; it has a user of that name. Skips where it cannot be."""
    missing = [name for name in ("unshare", "nsenter", "systemctl") if not shutil.which(name)]
    if os.geteuid() != 0 or missing or not SYSTEMD.exists():
        pytest.skip(f"a systemd of its own needs root, systemd and util-linux ({missing})")
    group = _control_group()
    _prepare(folder, user)
    join = f'echo $$ > {group}/cgroup.procs; exec unshare "$@"'
    flags = ("--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup", "--mount-proc",
             "--kill-child")  # fmt: skip
    with (folder / "boot.log").open("wb") as log:
        outer = subprocess.Popen(
            ["sh", "-c", join, "sh", *flags, "sh", "-c", _BOOT, "sh", str(folder), str(SYSTEMD)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield _wait_until_up(folder, outer)
    finally:
        outer.kill()
        outer.wait()
        _remove(group)


def _control_group() -> Path:
    """A control group of our own in the unified hierarchy."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    unified = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    if not unified:
        pytest.skip("this machine has no unified hierarchy of control groups")
    group = unified[0] / f"deployer-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    return group


def _prepare(folder: Path, user: str) -> None:
    for name in ("units", "lib"):
        (folder / name).mkdir(parents=True)
    for target in TARGETS:
        unit = f"[Unit]\nDescription={target}\nDefaultDependencies=no\n"
        (folder / "units" / f"{target}.target").write_text(unit, encoding="utf-8")
    accounts = {
        "passwd": f"{user}:x:{USER_ID}:{USER_ID}::/var/lib/{user}:/usr/sbin/nologin\n",
        "group": f"{user}:x:{USER_ID}:\n",
    }
    for name, line in accounts.items():
        kept = [
            old
            for old in Path("/etc", name).read_text("utf-8").splitlines(keepends=True)
            if not old.startswith(f"{user}:")
        ]
        (folder / name).write_text("".join([*kept, line]), encoding="utf-8")


def _wait_until_up(folder: Path, outer: subprocess.Popen[bytes]) -> PrivateSystemd:
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and outer.poll() is None:
        for child in psutil.Process(outer.pid).children():
            made = PrivateSystemd(folder, child.pid)
            if made.systemctl("is-system-running").stdout.strip() in ("running", "degraded"):
                return made
        time.sleep(0.2)
    log = (folder / "boot.log").read_text("utf-8", "replace")[-500:]
    pytest.skip(f"systemd does not come up in namespaces of its own here: {log}")


def _remove(group: Path) -> None:
    """Delete a control group and those below it, once their processes are gone."""
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _rmdir(folder)
        _rmdir(group)
        time.sleep(0.1)


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
