"""Who a process is beyond its pid, and what memory it took."""

from __future__ import annotations

from pathlib import Path

import psutil


def start_mark(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None where it does not run.

    On Linux the start in ticks since boot, which setting the clock does not change.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():  # the name, in parentheses, may hold anything; field 22 is the start
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return f"{process.create_time():.2f}"
    except (psutil.Error, OSError, IndexError):
        return None


def peak_rss(pid: int) -> int | None:
    """The most physical memory a process and those it started have held so far, bytes (Linux).

    Pages they share are counted once for each, so this is an upper bound.
    """
    own = _high_water(pid)
    if own is None:
        return None
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        children = []
    return own + sum(_high_water(child.pid) or 0 for child in children)


def _high_water(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None
