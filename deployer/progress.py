"""How long work tells of itself: the code that works knows this Protocol and never prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """One piece of work that is under way."""

    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        """Tell how far it is (`done` of `total`, in any one unit) and what it does now."""


class Progress(Protocol):
    """Where work is reported; the console draws it, tests and libraries use `SILENT`."""

    def step(self, title: str) -> AbstractContextManager[Step]:
        """Open one step; it ends, with its time shown, when the context is left."""

    def note(self, message: str) -> None:
        """Say one line that stays on the screen."""

    def warn(self, message: str) -> None:
        """Say one line that the user should act upon."""


class _SilentStep:
    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        return


class Silent:
    """A `Progress` that shows nothing."""

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        yield _SilentStep()

    def note(self, message: str) -> None:
        return

    def warn(self, message: str) -> None:
        return


SILENT = Silent()
