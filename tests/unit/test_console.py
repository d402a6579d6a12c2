"""What a person sees: lines in a log, a bar on a terminal, tables, and names taken literally."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from deployer import console as module
from deployer.console import (
    PLAIN_SECONDS,
    BarProgress,
    Pace,
    PlainProgress,
    print_lines,
    print_table,
    reporter,
)

ODD = "fetch [/red] [bold]x[/bold] :smile: model[1].gguf"
ESCAPE = "\x1b"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def plain() -> tuple[io.StringIO, PlainProgress]:
    out = io.StringIO()
    return out, PlainProgress(Console(file=out, highlight=False, emoji=False, soft_wrap=True))


@pytest.fixture
def terminal() -> tuple[io.StringIO, BarProgress]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False, emoji=False)
    return out, BarProgress(console)


def test_without_a_terminal_there_are_plain_lines() -> None:
    assert isinstance(reporter(), PlainProgress)


def test_a_step_has_a_line_when_it_begins_and_when_it_ends(
    plain: tuple[io.StringIO, PlainProgress],
) -> None:
    out, progress = plain
    with progress.step(ODD):
        assert out.getvalue() == f"… {ODD}\n"
    progress.note(ODD)
    progress.warn(ODD)
    lines = out.getvalue().splitlines()
    assert lines[1].startswith(f"✓ {ODD} (")
    assert lines[2:] == [f"  {ODD}", f"warning: {ODD}"]
    assert ESCAPE not in out.getvalue()


def test_a_long_step_says_now_and_then_where_it_is(
    plain: tuple[io.StringIO, PlainProgress], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, progress = plain
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress.step("download") as step:
        step.update(done=1, total=4)
        now[0] += PLAIN_SECONDS
        step.update(done=2, total=4, note="a.safetensors")
        step.update(done=3, total=4)
        now[0] += PLAIN_SECONDS
        step.update(note="verifying")
    lines = out.getvalue().splitlines()
    assert lines[1:3] == ["  download 50 % a.safetensors, 30 s left", "  download verifying"]
    assert lines[3] == f"✓ download ({2 * PLAIN_SECONDS:.1f} s)"


def test_a_step_that_fails_is_not_ticked_off(plain: tuple[io.StringIO, PlainProgress]) -> None:
    out, progress = plain
    with pytest.raises(KeyError), progress.step("convert"):
        raise KeyError
    assert "✓" not in out.getvalue()


def test_quiet_keeps_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    progress = reporter(quiet=True)
    with progress.step("convert") as step:
        step.update(done=1, total=2)
    progress.note("noted")
    progress.warn("look out")
    assert capsys.readouterr().err == "warning: look out\n"


def test_on_a_terminal_names_are_taken_literally(
    terminal: tuple[io.StringIO, BarProgress],
) -> None:
    out, progress = terminal
    with progress.step(ODD) as step:
        step.update(done=1, total=2, note=ODD)
        with progress.step("a step within") as inner:
            inner.update(note="[/dim]")
        time.sleep(0.12)  # the bar is drawn ten times a second
    progress.note(ODD)
    progress.warn(ODD)
    assert ESCAPE in out.getvalue()
    assert f"✓ {ODD}" in COLOURS.sub("", out.getvalue())
    assert out.getvalue().count(ODD) >= 3


def test_a_bar_that_fails_lets_the_next_one_begin(
    terminal: tuple[io.StringIO, BarProgress],
) -> None:
    out, progress = terminal
    with pytest.raises(KeyError), progress.step("one"):
        raise KeyError
    with progress.step("two"):
        pass
    assert progress.bar is None
    assert "two" in out.getvalue()


def test_a_table_is_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "what"), [("a", ODD), ("b", "")], "title [/x]")
    out = capsys.readouterr().out
    assert ODD in out
    assert "title [/x]" in out
    assert ESCAPE not in out


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([ODD, ""])
    assert capsys.readouterr().out == f"{ODD}\n\n"


# Time left


def test_the_time_left_follows_from_the_pace_so_far() -> None:
    pace = Pace()
    assert pace.left(None, 30, 0.0) == ""
    assert pace.left(0, 30, 10.0) == ""
    assert pace.left(1, 30, 20.0) == "5 min left"
    assert pace.left(25, 30, 260.0) == "50 s left"
    assert pace.left(30, 30, 310.0) == "0 s left"


def test_work_that_starts_again_is_timed_again() -> None:
    pace = Pace()
    pace.left(0, 10, 0.0)
    assert pace.left(9, 10, 9.0) == "1 s left"
    assert pace.left(0, 10, 100.0) == ""
    assert pace.left(5, 10, 150.0) == "50 s left"
