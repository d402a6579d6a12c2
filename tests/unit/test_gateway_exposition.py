"""Prometheus's text format: what is passed on, what is left out, what a page of many looks like."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from deployer.gateway.exposition import LONGEST_LINE, families, joined, samples

PAGE = r"""# HELP llamacpp:tokens_total Tokens, \\n and \q
# TYPE llamacpp:tokens_total counter
llamacpp:tokens_total 5 1700000000000
# HELP wait_seconds How long.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.1", model="a \" } b"} 1
wait_seconds_bucket{le="+Inf",model="a \" } b",} 2
wait_seconds_sum{model="a \" } b"} 1e-3
wait_seconds_count{model="a \" } b"} 2
lonely NaN
"""
WRONG = (
    "twice{a=\"1\",a=\"2\"} 3", "bare{a=1} 3", "more 3 x", "stuck5", '{a="b"} 3', "1st 3", "word x",
    'open{a="b 3', 'wait_seconds_bucket{le="wide"} 1', "wait_seconds_bucket 1", "wait_seconds 2",
    "llamacpp:tokens_total 6", 'bad_escape{a="\\x"} 1', "long " + "1" * LONGEST_LINE,
)  # fmt: skip


def page(text: str, *servers: str) -> str:
    """What a page of several engines holds that all wrote the same."""
    found, _ = families(text)
    parts = [(server, family) for server in servers for family in found.values()]
    return "\n".join(joined(parts, "deployer_server")) + "\n"


def test_each_sample_gets_the_server_and_each_family_one_type() -> None:
    assert page(PAGE, "q4", "q8").splitlines() == [
        r"# HELP llamacpp:tokens_total Tokens, \\n and \\q",
        "# TYPE llamacpp:tokens_total counter",
        'llamacpp:tokens_total{deployer_server="q4"} 5',
        'llamacpp:tokens_total{deployer_server="q8"} 5',
        "# HELP wait_seconds How long.",
        "# TYPE wait_seconds histogram",
        *(
            line
            for name in ("q4", "q8")
            for line in (
                f'wait_seconds_bucket{{deployer_server="{name}",le="0.1", model="a \\" }} b"}} 1',
                f'wait_seconds_bucket{{deployer_server="{name}",le="+Inf",model="a \\" }} b"}} 2',
                f'wait_seconds_sum{{deployer_server="{name}",model="a \\" }} b"}} 1e-3',
                f'wait_seconds_count{{deployer_server="{name}",model="a \\" }} b"}} 2',
            )
        ),
        "# TYPE lonely untyped",
        'lonely{deployer_server="q4"} NaN',
        'lonely{deployer_server="q8"} NaN',
    ]


def test_the_page_is_read_by_the_library_of_prometheus() -> None:
    read = {family.name: family for family in text_string_to_metric_families(page(PAGE, "q4"))}
    assert read["llamacpp:tokens"].samples[0].labels == {"deployer_server": "q4"}
    first = read["wait_seconds"].samples[0]
    assert first.labels == {"deployer_server": "q4", "le": "0.1", "model": 'a " } b'}
    assert math.isnan(read["lonely"].samples[0].value)


def test_a_wrong_line_costs_itself_alone() -> None:
    for line in WRONG:
        found, wrong = families(f"{PAGE}{line}\n")
        assert wrong == 1, line
        assert page(f"{PAGE}{line}\n", "q4") == page(PAGE, "q4"), line
        assert sorted(found) == ["llamacpp:tokens_total", "lonely", "wait_seconds"], line


def test_a_family_has_one_type_on_the_page() -> None:
    other, _ = families("# TYPE lonely counter\nlonely 3\n")
    mine, _ = families(PAGE)
    lines = joined([("q4", mine["lonely"]), ("q8", other["lonely"])], "s")
    assert lines == ["# TYPE lonely untyped", 'lonely{s="q4"} NaN']


def test_comments_that_say_little_do_no_harm() -> None:
    told = ("# TYPE", "# TYPE x", "# HELP", "# TYPE x strange\nx 1", "x 1\n# TYPE x gauge\n", "#")
    for text in (*told, "\r\n"):
        assert families(text)[1] == 0, text


def test_samples_are_read_with_their_labels() -> None:
    (one, other) = samples(PAGE, "wait_seconds_bucket")
    assert (one.name, one.value) == ("wait_seconds_bucket", 1.0)
    assert one.labels == {"le": "0.1", "model": 'a " } b'}
    assert other.labels["le"] == "+Inf"
    assert [sample.name for sample in samples(PAGE)][-1] == "lonely"


@given(st.text(alphabet='ab_:#{}"=,\\ \t\n019.eE+-#HELPTYPNaInf', max_size=120))
def test_whatever_an_engine_writes_the_page_can_be_read(text: str) -> None:
    assert list(text_string_to_metric_families(page(f"{PAGE}{text}\n", "q4")))
    list(samples(text))
