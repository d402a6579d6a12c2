"""The real worker that draws a comparison's pictures."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from made_up_comparison import made_up_comparison

from deployer import report
from deployer.errors import StageError

pytestmark = pytest.mark.integration
PICTURES = ["pareto-size.png", "pareto-throughput.png", "latency.png"]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height that a PNG file says it has."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_the_pictures_of_a_comparison_are_drawn(work, tmp_path):
    made = made_up_comparison()
    hostile = made.rows[0].model_copy(update={"name": "$x_{ 量化 \\frac"})
    made = made.model_copy(update={"rows": (hostile, *made.rows[1:])})
    folder = tmp_path / "figures"
    request = {**report.comparison_pictures(made), "folder": str(folder)}
    assert work("figures", "draw_figures", request) == {"figures": PICTURES}
    assert sorted(path.name for path in folder.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        assert size_of(folder / name) == (1600, 900)
        assert (folder / name).stat().st_size > 20_000, "more than a white sheet"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StageError, match="the pictures cannot be written"):
        work("figures", "draw_figures", {**request, "folder": str(blocked)})
