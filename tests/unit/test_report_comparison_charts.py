"""Where a comparison's charts put things: fronts, names that cover nothing, strips and bars."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from made_up_comparison import made_up_comparison

from deployer import report
from deployer.comparison import SPREAD, Comparison
from deployer.report import comparison_axes as axes
from deployer.report import comparison_charts as charts
from deployer.report import comparison_figures as figures
from deployer.report import comparison_labels as labels
from deployer.report import comparison_latency as latency
from deployer.report import words
from deployer.report.comparison_figures import BY_NAME, Figure

SIZE, OUTPUT = BY_NAME[figures.WEIGHTS], BY_NAME[figures.OUTPUT]


@pytest.fixture(scope="module")
def made() -> Comparison:
    return made_up_comparison()


def with_quality(made: Comparison, name: str, **update: object) -> Comparison:
    rows = tuple(
        row.model_copy(update={"quality": {**row.quality, **update}}) if row.name == name else row
        for row in made.rows
    )
    return made.model_copy(update={"rows": rows})


def divergence(row) -> float:
    return row.quality["kl_divergence"]["mean"] if "kl_divergence" in row.quality else 0.0


@pytest.mark.parametrize(
    ("column", "cost"),
    [
        (SIZE, lambda row: row.size.weights_bytes),
        (OUTPUT, lambda row: -row.serving.loaded.output.mean),
    ],
)
def test_the_front_holds_what_no_other_format_beats(made, column, cost):
    costs = {row.name: (cost(row), divergence(row)) for row in made.measured}
    beaten = {
        a
        for a, b in itertools.permutations(costs, 2)
        if costs[b] != costs[a] and all(x <= y for x, y in zip(costs[b], costs[a], strict=True))
    }
    chart = charts.front(made, column)
    assert set(chart.front) == set(costs) - beaten
    assert {p.name for p in chart.points if p.front} == set(chart.front)


def test_better_formats_lie_further_down_and_to_the_named_side(made):
    for column, larger in ((SIZE, False), (OUTPUT, True)):
        points = {p.name: p for p in charts.front(made, column).points}
        assert len(points) == len(made.measured)
        assert points["q8_0"].y > points["q4_k_m"].y > points["q4_0"].y
        assert points["f16"].y == points["bf16"].y == charts.front(made, column).zero
        assert (points["q4_0"].x > points["f16"].x) == larger
        assert all(0 <= p.x <= 100 and 0 <= p.y <= 100 for p in points.values())


def test_the_line_goes_through_the_front_in_steps(made):
    for column in (SIZE, OUTPUT):
        chart = charts.front(made, column)
        corners = set(chart.line)
        assert {(p.x, p.y) for p in chart.points if p.front} <= corners
        for (a, b), (c, d) in itertools.pairwise(chart.line):
            assert a == c or b == d
        heights = [y for _, y in chart.line]
        assert heights == sorted(heights)
        assert chart.path.count(" L ") == len(chart.line) - 1


def test_intervals_are_drawn_around_their_points(made):
    for point in charts.front(made, OUTPUT).points:
        start, length = point.across
        assert start <= point.x <= start + length
        if point.down:
            assert point.down[0] <= point.y <= sum(point.down)
    assert all(point.across is None for point in charts.front(made, SIZE).points)


def test_the_ratio_is_drawn_where_a_divergence_is_missing(made):
    without = with_quality(made, "awq", kl_divergence=None)
    quality = charts.quality_of(without)
    assert quality.column.name == figures.RATIO and quality.same == 1.0
    chart = charts.front(without, SIZE)
    assert chart.zero is None and len(chart.points) == len(made.measured)
    points = {p.name: p for p in chart.points}
    assert points["f16"].y > points["q8_0"].y > points["q4_0"].y
    assert "perplexity ratio 1.104" in points["q4_0"].title


def test_formats_that_were_compared_with_nothing_are_not_drawn(made):
    alone = made.model_copy(update={"rows": made.rows[:1]})
    assert charts.quality_of(alone) is None and charts.front(alone, SIZE) == charts.Front()
    rows = tuple(
        row.model_copy(update={"quality": {"perplexity": {"value": 20.0}}})
        if row.name == "q4_0" else row
        for row in made.rows
    )  # fmt: skip
    chart = charts.front(made.model_copy(update={"rows": rows}), SIZE)
    assert "q4_0" not in {p.name for p in chart.points} and chart.points


def boxes(points, shown, placed, width, height):
    for (x, y), text, label in zip(points, shown, placed, strict=True):
        size = labels.text_width(text)
        left = x * width / 100 + label.dx - (size if label.ends else 0)
        middle = y * height / 100 + label.dy
        yield left, middle - 8, left + size, middle + 8


def apart(a, b) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("seed", range(6))
def test_names_cover_neither_each_other_nor_a_dot(seed):
    draw = random.Random(seed)
    points = [(draw.uniform(5, 95), draw.uniform(5, 95)) for _ in range(14)]
    points += [(60 + draw.uniform(-4, 4), 40 + draw.uniform(-4, 4)) for _ in range(6)]
    shown = [draw.choice(("q4_0", "bnb-int8", "torchao-int8-weight")) for _ in points]
    for names, widths in ((shown, charts.WIDE), ([str(n) for n in range(20)], charts.NARROW)):
        placed = labels.place(points, names, widths, charts.HEIGHT)
        for width in widths:
            taken = list(boxes(points, names, placed, width, charts.HEIGHT))
            assert all(apart(a, b) for a, b in itertools.combinations(taken, 2))
            assert all(box[0] >= -1 and box[2] <= width + 1 for box in taken)
            dots = [(x * width / 100, y * charts.HEIGHT / 100) for x, y in points]
            for box, (x, y) in itertools.product(taken, dots):
                assert apart(box, (x - 5, y - 5, x + 5, y + 5))


def test_a_name_keeps_off_lines_and_a_far_one_has_a_leader():
    (label,) = labels.place([(50, 50)], ["name"], [600], 400, [((50, 50), (100, 50))])
    assert label.ends and label.dx < 0 and label.leader is None
    crowd = [(50 + n / 50, 50) for n in range(12)]
    placed = labels.place(crowd, ["a-long-name"] * 12, [600], 400)
    assert any(label.leader for label in placed)


def test_wide_letters_take_more_room():
    assert labels.text_width("量化") > labels.text_width("ab")


def test_a_logarithmic_axis_has_round_values_inside():
    assert axes.log_values(0.9, 60) == (1, 2, 5, 10, 20, 50)
    assert axes.log_values(0.001, 40) == pytest.approx((0.001, 0.01, 0.1, 1, 10))
    assert [axes.written(v) for v in (0.005, 0.3, 20.0, 5000.0)] == ["0.005", "0.3", "20", "5,000"]


def test_a_divergence_of_nothing_lies_at_zero_beneath_the_others():
    down = axes.Down([Figure(0.0), Figure(0.01, 0.009, 0.011), Figure(1.0)], logarithmic=True)
    assert down.at(0.0) == down.zero and down.at(1e-9) == down.zero
    assert 0 < down.at(1.0) < down.at(0.1) < down.at(0.01) < down.zero
    assert axes.Down([Figure(0.0), Figure(0.0)], logarithmic=True).zero is None


@pytest.mark.parametrize("field", ["ttft", "tpot"])
def test_strips_show_the_documents_percentiles(made, field):
    chart = latency.strips(made, field)
    assert [name for name, *_ in chart.rows] == [row.name for row in made.measured]
    for row, (_, alone, loaded) in zip(made.measured, chart.rows, strict=True):
        for level, band in ((row.serving.single, alone), (row.serving.loaded, loaded)):
            measured = getattr(level, field)
            assert band.p50 == words.ms(measured.p50.mean)
            assert band.p95 == words.ms(measured.p95.mean)
            assert words.ms(measured.spread[SPREAD.index(95)]) in band.title
            assert 0 <= band.start <= band.middle <= band.median <= band.middle + band.half
            assert band.middle + band.half <= band.start + band.length <= 100
    medians = {name: alone.median for name, alone, _ in chart.rows}
    fastest = min(made.measured, key=lambda row: getattr(row.serving.single, field).p50.mean)
    assert min(medians, key=medians.__getitem__) == fastest.name


def test_near_latencies_have_a_linear_axis_from_zero(made):
    one = made.model_copy(update={"rows": (made.row("bf16"),)})
    assert latency.strips(made, "tpot").logarithmic
    chart = latency.strips(one, "tpot")
    assert not chart.logarithmic and chart.ticks[0].label == "0"


def test_a_latency_without_its_percentiles_is_left_out(made):
    row = made.rows[0]
    short = row.serving.single.ttft.model_copy(update={"spread": ()})
    single = row.serving.single.model_copy(update={"ttft": short})
    serving = row.serving.model_copy(update={"single": single})
    one = made.model_copy(update={"rows": (row.model_copy(update={"serving": serving}),)})
    ((_, alone, loaded),) = latency.strips(one, "ttft").rows
    assert alone is None and loaded is not None


def test_goodput_bars_are_the_documents_shares(made):
    bars = {bar.name: bar for bar in latency.goodput(made)}
    for row in made.measured:
        goodput = row.serving.loaded.goodput
        assert bars[row.name].share == pytest.approx(100 * goodput.mean)
        assert bars[row.name].shown == words.share(goodput.mean)
        if bars[row.name].low is not None:
            assert bars[row.name].low >= 0
            assert bars[row.name].low + bars[row.name].length <= 100.001


def test_the_page_draws_every_point_and_strip(made):
    html = report.comparison_html(made)
    assert len(re.findall(r'<i class="spot ', html)) == 2 * len(made.measured)
    assert len(re.findall(r'class="name onwide', html)) == 2 * len(made.measured)
    assert len(re.findall(r'class="half ', html)) == 4 * len(made.measured)


def test_the_pictures_have_the_pages_positions(made):
    pictures = json.loads(json.dumps(report.comparison_pictures(made)))
    assert [front["file"] for front in pictures["fronts"]] == [
        "pareto-size.png", "pareto-throughput.png",
    ]  # fmt: skip
    chart = charts.front(made, SIZE)
    drawn = [(p["name"], p["x"], p["y"]) for p in pictures["fronts"][0]["points"]]
    assert drawn == [(p.name, p.x, p.y) for p in chart.points]
    assert pictures["strips"]["file"] == "latency.png" and len(pictures["strips"]["plots"]) == 2
    assert "Example CPU" in pictures["foot"] and "3 trials" in pictures["foot"]
    nothing = report.comparison_pictures(made.model_copy(update={"rows": made.rows[-3:]}))
    assert nothing["fronts"] == [] and nothing["strips"] is None
