"""What a person sees: progress on standard error, tables on standard output.

On a terminal, work shows a moving bar; elsewhere it is plain lines, so that logs stay readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deployer.progress import Progress as ProgressProtocol
from deployer.progress import Step

PLAIN_SECONDS = 15.0
"""Without a terminal, how often a long step says where it is."""


def reporter(quiet: bool = False) -> ProgressProtocol:
    """The progress display that fits standard error."""
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    if quiet:
        return PlainProgress(console, steps=False)
    return BarProgress(console) if console.is_terminal else PlainProgress(console)


class Pace:
    """How long the rest will take, if it goes on as fast as it went since the first report."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None
        self.last = 0.0

    def left(self, done: float | None, total: float | None, now: float) -> str:
        """`3 min left` after `done` of `total` at the time `now` (seconds); "" where unknown."""
        if done is None or not total:
            return ""
        if self.first is None or done < self.last:  # the work may begin anew
            self.first = (done, now)
        self.last = done
        before, began = self.first
        if done <= before:
            return ""
        seconds = (total - done) * (now - began) / (done - before)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


class _PlainStep:
    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.last = time.monotonic()
        self.pace = Pace()

    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        now = time.monotonic()
        left = self.pace.left(done, total, now)
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        share = f" {100 * done / total:.0f} %" if done is not None and total else ""
        told = ", ".join(word for word in (note, left) if word)
        self.console.print(f"  {self.title}{share} {told}".rstrip(), markup=False)


class PlainProgress:
    """Lines: one when a step ends, and one now and then while it lasts."""

    def __init__(self, console: Console, steps: bool = True) -> None:
        self.console = console
        self.steps = steps

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        started = time.monotonic()
        if self.steps:
            self.console.print(f"… {title}", markup=False)
        yield _PlainStep(self.console, title)
        if self.steps:
            self.console.print(f"✓ {title} ({time.monotonic() - started:.1f} s)", markup=False)

    def note(self, message: str) -> None:
        if self.steps:
            self.console.print(f"  {message}", markup=False)

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", markup=False, style="yellow")


class _BarStep:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar = bar
        self.task = task
        self.pace = Pace()

    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        left = self.pace.left(done, total, time.monotonic())
        self.bar.update(self.task, completed=done, total=total, left=left)
        if note is not None:
            self.bar.update(self.task, note=note)


class BarProgress:
    """A bar for the step under way; a line stays of every step that ended."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        started = time.monotonic()
        if self.bar is not None:  # a step within a step is a line of its own below the first
            task = self.bar.add_task(title, total=None, left="", note="")
            yield _BarStep(self.bar, task)
            self.bar.remove_task(task)
            return
        columns = (  # without markup: a file may be named "[/x].gguf"
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            self.bar = bar
            try:
                yield _BarStep(bar, bar.add_task(title, total=None, left="", note=""))
            finally:
                self.bar = None
        seconds = time.monotonic() - started
        line = Text.assemble(("✓ ", "green"), title, (f" ({seconds:.1f} s)", "dim"))
        self.console.print(line)

    def note(self, message: str) -> None:
        self.console.print(f"  {message}", markup=False)

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", markup=False, style="yellow")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on standard output."""
    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)


def print_lines(lines: Sequence[str]) -> None:
    """Plain lines on standard output."""
    for line in lines:
        print(line)
