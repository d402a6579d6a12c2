"""A comparison's table, lines, CSV, Markdown and page: every figure comes from the document."""

from __future__ import annotations

import csv
import io
import re

import pytest
from html_page import EVIL, Page
from made_up_comparison import made_up_comparison

from deployer import report
from deployer.comparison import Comparison, Estimate, Row, estimate
from deployer.report import comparison as tables
from deployer.report import comparison_documents, words
from deployer.report import comparison_figures as figures
from deployer.report import comparison_page as page
from deployer.report.comparison_figures import BY_NAME, Figure


@pytest.fixture(scope="module")
def made() -> Comparison:
    return made_up_comparison()


@pytest.fixture(scope="module")
def html(made: Comparison) -> str:
    return report.comparison_html(made)


def changed(made: Comparison, name: str, **update: object) -> Comparison:
    """The comparison with one format changed."""
    rows = tuple(r.model_copy(update=update) if r.name == name else r for r in made.rows)
    return made.model_copy(update={"rows": rows})


def table_of(made: Comparison) -> dict[str, dict[str, str]]:
    columns, rows = report.comparison_table(made)
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


# The terminal


def test_the_table_has_every_format_and_its_figures(made):
    table = table_of(made)
    assert list(table) == [f"{r.name} !" if r.name == "w8a8" else r.name for r in made.rows]
    row, serving = table["q4_0"], made.row("q4_0").serving
    assert row["weights\nMB"] == words.rate(made.row("q4_0").size.weights_bytes / 1e6)
    assert row["1 user\ntok/s"] == f"{words.rate(serving.single.decode.mean)} *"
    assert row["TTFT p95\nms"] == f"{words.rate(serving.loaded.ttft.p95.mean)} *"
    assert row["perplexity\nratio"] == "1.104" and table["f16"]["perplexity\nratio"] == "ref"
    output = serving.loaded.output
    assert row["loaded\ntok/s"] == f"186 ±{(output.high - output.low) / 2:.0f} *"


def test_the_table_fits_a_terminal(made):
    columns, rows = report.comparison_table(made)
    cells = zip(*[[max(c.split("\n"), key=len) for c in columns], *rows], strict=True)
    assert sum(3 + max(map(len, column)) for column in cells) + 1 <= 118


def test_formats_without_figures_come_last_and_show_no_digit(made):
    _, rows = report.comparison_table(made)
    for row, (name, *cells) in zip(made.rows[-3:], rows[-3:], strict=True):
        assert name == row.name
        assert not re.search(r"\d", "".join(cells)), cells
    assert [row[1] for row in rows[-3:]] == ["refused", "not here", "failed"]


def test_ties_are_marked_and_named(made):
    without = made.model_copy(update={"rows": tuple(r for r in made.rows if r.name != "q4_0")})
    table = table_of(without)
    assert table["mixed"]["loaded\ntok/s"].endswith(" *")
    assert table["q4_k_m"]["loaded\ntok/s"].endswith(" =")
    assert not table["q6_k"]["loaded\ntok/s"].endswith(("=", "*"))
    assert "Fastest for 8 users: mixed (163 tok/s) = q4_k_m (163 tok/s), a tie." in (
        report.comparison_lines(without)
    )


def test_a_quality_interval_that_overlaps_the_best_is_a_tie(made):
    near = {"mean": 0.0041, "low": 0.0038, "high": 0.0044}
    quality = {**made.row("q6_k").quality, "kl_divergence": near}
    twice = changed(made, "q6_k", quality=quality)
    assert figures.leaders(twice, BY_NAME["kl_divergence_nats"]) == ("q8_0", "q6_k")
    assert figures.leaders(made, BY_NAME["kl_divergence_nats"]) == ("q8_0",)


def test_one_format_leads_nothing(made):
    alone = made.model_copy(update={"rows": made.rows[1:2]})
    assert all(not figures.leaders(alone, column) for column in figures.COLUMNS)
    assert tables.leads(alone) == []


def test_the_lines_say_what_leads_what_is_missing_and_what_was_disturbed(made):
    text = "\n".join(report.comparison_lines(made))
    for said in (
        "within the noise of 3 interleaved trials", "Smallest: mixed (89.6 MB).",
        "Closest to 16 bits: q8_0 (0.0039 nats).", "Fastest for one user: q4_0 (118 tok/s).",
        "hqq-int2 missed its quality gate: perplexity is 61.3 times",
        "quanto-float8 cannot run here: quanto float8 needs a GPU",
        "torchao-int4 failed: transformers serve ended",
        "! w8a8, trial 2: other programs used 31.0 % of the processors",
        "! the client was busy 85 % of the time: awq with 8 users.",
    ):  # fmt: skip
        assert said in text
    assert text.count("! ") == 2


def test_one_trial_is_said_to_tell_no_noise(made):
    once = made.model_copy(update={"trials": tuple(t for t in made.trials if t.number == 1)})
    assert "One trial tells no noise" in report.comparison_lines(once)[0]


# CSV


def records(made: Comparison) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(report.comparison_csv(made)))
    return {row["format"]: row for row in rows}


def test_the_csv_has_every_figure_of_the_document(made):
    found = records(made)
    assert list(found) == [row.name for row in made.rows]
    for row in made.measured:
        serving, cells = row.serving, found[row.name]
        expected = {
            "weights_bytes": row.size.weights_bytes,
            "bits_per_weight": row.size.bits_per_weight,
            "ratio_to_fp32": row.size.ratio_to_fp32,
            "perplexity": row.quality["perplexity"]["value"],
            "load_seconds": serving.load_seconds.mean,
            "load_seconds_low": serving.load_seconds.low,
            "peak_rss_bytes": serving.peak_rss_bytes.mean,
            "energy_j_per_token_high": serving.energy_j_per_token.high,
            "prefill_single_tokens_per_s": serving.single.prefill.mean,
            "decode_loaded_tokens_per_s": serving.loaded.decode.mean,
            "output_loaded_tokens_per_s_low": serving.loaded.output.low,
            "requests_loaded_per_s": serving.loaded.requests_per_s.mean,
            "ttft_p50_single_ms": serving.single.ttft.p50.mean,
            "tpot_p95_loaded_ms": serving.loaded.tpot.p95.mean,
            "e2e_p95_loaded_ms_high": serving.loaded.e2e.p95.high,
            "goodput_loaded_share": serving.loaded.goodput.mean,
        }
        for name, value in expected.items():
            assert float(cells[name]) == pytest.approx(value), (row.name, name)
        assert cells["peak_gpu_bytes"] == "" and cells["reason"] == ""
        assert cells["prefill_loaded_tokens_per_s"] == "", "it was not measured"


def test_the_csv_has_intervals_tasks_and_contended_trials(made):
    cells = records(made)["q4_0"]
    ratio = made.row("q4_0").quality["perplexity_ratio"]
    assert float(cells["perplexity_ratio_low"]) == ratio["low"]
    assert float(cells["kl_divergence_nats_high"]) == pytest.approx(0.1929 * 1.09)
    score = made.row("q4_0").tasks[0]
    assert float(cells["made-up-task_accuracy_share"]) == score.value
    assert float(cells["made-up-task_accuracy_recovery_share_low"]) == pytest.approx(
        score.recovery_low
    )
    assert "weights_bytes_low" not in cells
    assert records(made)["w8a8"]["contended_trials"] == "2" and not cells["contended_trials"]


@pytest.mark.parametrize("name", ["quanto-float8", "torchao-int4"])
def test_what_could_not_run_has_no_figure_in_the_csv(made, name):
    cells = records(made)[name]
    about = {"format", *comparison_documents.ABOUT}
    assert cells["reason"] == made.row(name).reason
    assert {field: value for field, value in cells.items() if value and field not in about} == {}


def test_what_was_refused_has_its_quality_and_nothing_else(made):
    cells = records(made)["hqq-int2"]
    assert cells["perplexity_ratio"] == "61.3" and cells["perplexity_ratio_high"] == "68.9"
    quality = {c.name for c in figures.COLUMNS if c.group == figures.QUALITY}
    filled = {c.name for c in figures.COLUMNS if cells[c.name] and c.name not in quality}
    assert filled == set()


def test_every_columns_name_ends_with_its_unit():
    units = ("bytes", "weight", "fp32", "fp16", "perplexity", "ratio", "nats", "share", "seconds",
             "token", "per_s", "ms")  # fmt: skip
    assert [c.name for c in figures.COLUMNS if not c.name.endswith(units)] == []
    assert len(BY_NAME) == len(figures.COLUMNS)


# Markdown


def test_the_markdown_has_the_table_and_where_it_comes_from(made):
    text = report.comparison_markdown(made)
    header, rule, *rows = text.split("\n\n")[0].splitlines()
    assert len(rows) == len(made.measured)
    cut = [line.replace("\\|", "").count("|") for line in (header, rule, *rows)]
    assert len(set(cut)) == 1
    assert header.startswith("| format | engine | weights (MB) |") and "8 users" in header
    row = next(line for line in rows if line.startswith("| q4\\_0 |"))
    assert "1.104 (1.082 to 1.126)" in row and "186 ±8 \\*" in row
    for said in (
        "Example CPU @ 2.50GHz, 2 cores, 4 threads", "xllamacpp 2026.10.11549", "deployer 0.1.0",
        "Measured 2026-11-22", "      deployer compare --matrix made-up.yaml\n",
        "one user, then 8 at once, 20 s each", "3 trials of each format",
        "| quanto-float8 | transformers | cannot run here |",
    ):  # fmt: skip
        assert said in text


def test_columns_that_nobody_measured_are_left_out(made):
    assert "GPU memory" not in report.comparison_markdown(made)
    assert "GPU memory" not in report.comparison_html(made)
    gpu = made.row("awq").serving.model_copy(update={"peak_gpu_bytes": estimate([5e9, 5.1e9])})
    made = changed(made, "awq", serving=gpu)
    assert "GPU memory (MB)" in report.comparison_markdown(made)
    assert "GPU memory" in report.comparison_html(made)


# The page


def test_the_page_is_whole_and_loads_nothing(html):
    parsed = Page(html)
    assert parsed.open == [] and parsed.loads == []
    assert "script" not in parsed.tags and "link" not in parsed.tags and "img" not in parsed.tags
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert "nan" not in html.lower()


def cells_of(html: str, name: str) -> list[str]:
    """The cells behind a format's name in the whole table, without their markup."""
    row = html[html.index(f'<td class="format"><b>{name}') :]
    row = row[: row.index("</tr>")]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)[1:]
    return [re.sub(r"<[^>]+>", " ", cell).split(" ")[0] for cell in cells]


def test_every_figure_of_the_whole_table_comes_from_the_document(made, html):
    columns = figures.known_columns(made)
    for row in made.measured:
        cells = cells_of(html, row.name)
        assert len(cells) == len(columns)
        for column, cell in zip(columns, cells, strict=True):
            figure = column.read(row)
            expected = tables.missing(row, column) if figure is None else column.write(figure.value)
            assert cell == expected, (row.name, column.name)


@pytest.mark.parametrize("name", ["hqq-int2", "quanto-float8", "torchao-int4"])
def test_a_format_without_a_measurement_shows_no_digit(made, html, name):
    row = made.row(name)
    assert not re.search(r"\d", "".join(cells_of(html, name)))
    text = html
    for own in (row.reason, row.hint):
        text = text.replace(words_in_html(own), "")
    spots = [match.start() for match in re.finditer(re.escape(name), text)]
    assert spots, "it is on the page"
    for spot in spots:
        behind = re.sub(r"<[^>]+>", " ", text[spot + len(name) : spot + 200])
        behind = behind.partition("</li>")[0].split(made.rows[-1].name)[0]
        behind = re.sub("|".join(row.name for row in made.rows), "", behind)
        assert not re.search(r"\d", behind.split("What they say")[0]), behind
    assert words_in_html(row.reason) in html


def words_in_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;")


def test_the_page_says_on_what_how_and_with_what_it_was_measured(made, html):
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    for said in (
        "made-up-figures", "10 of 13 measured", "Example CPU @ 2.50GHz", "2 warnings",
        "other programs used 31.0 % of the processors", "xllamacpp", "2026.10.11549", "24.0 GiB",
        "about 64 tokens", "TTFT at most 1.50 s, TPOT at most 120 ms", "made-up==1.0",
        "deployer compare --matrix made-up.yaml", "Student&#39;s t", "It is a made-up answer.",
        "the 95 % interval of the ratio of their paired trials holds 1", "72 min", made.git,
    ):  # fmt: skip
        assert said in text, said
    for column in figures.known_columns(made):
        assert words_in_html(column.meaning) in html, column.name


def test_everything_from_outside_is_escaped(made):
    evil = Row(name=EVIL, engine=EVIL, method=EVIL, scheme=EVIL, status="failed", reason=EVIL,
               hint=EVIL)  # fmt: skip
    serving = made.rows[0].serving.model_copy(
        update={
            "server": EVIL, "version": EVIL, "sample": EVIL,
            "loaded": made.rows[0].serving.loaded.model_copy(update={"problems": (EVIL,)}),
        }
    )  # fmt: skip
    known = made.rows[0].model_copy(update={"name": EVIL + "2", "engine": EVIL, "serving": serving})
    hostile = made.model_copy(
        update={
            "rows": (known, *made.rows[1:], evil), "name": EVIL, "command": EVIL,
            "source": {EVIL: EVIL}, "versions": {EVIL: EVIL},
            "host": made.host.model_copy(update={"cpu": EVIL}),
        }
    )  # fmt: skip
    text = report.comparison_html(hostile)
    assert "<script" not in text and Page(text).open == []
    table, _, rest = report.comparison_markdown(hostile).partition("\n\n")
    assert "<script" not in table + rest.partition("- Command:")[0]
    lines = table.splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert f"{EVIL}2" in records(hostile)


def test_nothing_measured_still_makes_every_output(made):
    nothing = made.model_copy(update={"rows": made.rows[-3:], "trials": ()})
    assert page.comparison_verdict(nothing) == ("bad", "Nothing could be measured")
    text = report.comparison_html(nothing)
    assert Page(text).open == [] and "<path" not in text and "All figures" not in text
    assert len(report.comparison_table(nothing)[1]) == 3
    assert report.comparison_csv(nothing).count("\n") == 4
    assert "no figures" in report.comparison_markdown(nothing)


def test_without_figures_that_may_be_missing_the_page_still_stands(made):
    level = made.rows[0].serving.loaded.model_copy(
        update=dict.fromkeys(("ttft", "tpot", "e2e", "output", "decode", "goodput"))
    )
    rows = tuple(
        row.model_copy(
            update={
                "serving": row.serving.model_copy(
                    update={"loaded": level, "energy_j_per_token": None, "peak_rss_bytes": None}
                )
            }
        )
        for row in made.measured
    )
    text = report.comparison_html(made.model_copy(update={"rows": rows}))
    assert (
        Page(text).open == [] and "Goodput with" not in text and "Quality against speed" not in text
    )
    assert "Quality against size" in text


@pytest.mark.parametrize(
    ("disturbed", "expected"),
    [(True, ("unsure", "2 warnings")), (False, ("good", "9 of 12 formats measured"))],
)
def test_the_verdict(made, disturbed, expected):
    if not disturbed:
        trials = tuple(t.model_copy(update={"contended": False}) for t in made.trials)
        rows = tuple(row for row in made.rows if row.name != "awq")
        made = made.model_copy(update={"trials": trials, "rows": rows})
    assert page.comparison_verdict(made) == expected


# Figures in words


@pytest.mark.parametrize(
    ("name", "figure", "shown", "between"),
    [
        ("weights_bytes", Figure(269_030_016), "269", ""),
        ("perplexity_ratio", Figure(1.0364, 1.0281, 1.0447), "1.036", "1.028 to 1.045"),
        ("kl_divergence_nats", Figure(0.00391, 0.0036, 0.0042), "0.0039", "0.0036 to 0.0042"),
        ("kl_divergence_nats", Figure(0.00000213), "2.1e-06", ""),
        ("goodput_loaded_share", Figure(0.9999), "99.9", ""),
        ("top1_agreement_share", Figure(0.759), "75.9", ""),
    ],
)
def test_figures_in_words(name, figure, shown, between):
    column = BY_NAME[name]
    assert column.write(figure.value) == shown
    assert figures.interval(column, figure) == between


@pytest.mark.parametrize(
    ("values", "shown"),
    [((160.0, 163.0, 166.0), "±7"), ((163.0, 163.001, 163.002), "±0.002"), ((163.0,), ""),
     ((163.0, 163.0), "")],
)  # fmt: skip
def test_the_half_interval_has_the_digits_of_its_figure(values, shown):
    figure = figures.trials(estimate(values))
    assert figure is not None
    assert figures.interval(BY_NAME[figures.OUTPUT], figure) == shown


def test_a_share_and_its_half_interval_are_per_cent():
    made = Estimate(values=(0.80, 0.84), mean=0.82, low=0.62, high=1.02)
    figure = figures.trials(made)
    assert figure is not None
    assert figures.interval(BY_NAME["goodput_loaded_share"], figure) == "±20.0"
