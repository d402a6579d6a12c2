"""What memory an engine holds, with all it started."""

from __future__ import annotations

from pathlib import Path

import psutil


def held_beyond(pid: int, limit: int) -> int | None:
    """Bytes that a process and those it started hold, where that is over `limit`, else None.

    Memory that they share counts once where the kernel tells each one's part (Linux), else once
    for each; a mapped file counts as far as it is in memory.
    """
    sizes = _resident(pid)
    if sum(sizes.values()) <= limit:  # an upper bound that costs little
        return None
    held = sum(_proportional(member, size) for member, size in sizes.items())
    return held if held > limit else None


def _resident(pid: int) -> dict[int, int]:
    """Resident bytes of each process of a tree; those that are gone are left out."""
    sizes: dict[int, int] = {}
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            sizes[member.pid] = member.memory_info().rss
    except psutil.Error:
        pass
    return sizes


def _proportional(pid: int, resident: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return resident
    lines = [line.split() for line in text.splitlines() if line.startswith("Pss:")]
    return int(lines[0][1]) << 10 if lines else resident
