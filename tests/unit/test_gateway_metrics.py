"""The gateway's metrics: names, bounded labels, series that go with their servers."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_samples import outcome, route, table, upstream
from prometheus_client.parser import text_string_to_metric_families

from deployer.gateway.judging import Standing
from deployer.gateway.metrics import REASONS, GatewayMetrics

NAMES = {
    "deployer_requests_total": {"route", "server", "kind"},
    "deployer_refused_total": {"reason"},
    "deployer_ttft_seconds": {"route", "server"},
    "deployer_tpot_seconds": {"route", "server"},
    "deployer_request_seconds": {"route", "server"},
    "deployer_queue_seconds": {"route"},
    "deployer_tokens_total": {"route", "server", "direction"},
    "deployer_key_tokens_total": {"key"},
    "deployer_running": {"server"},
    "deployer_waiting": {"route"},
    "deployer_server_up": {"server"},
    "deployer_server_restarts_total": {"server"},
    "deployer_server_fit": {"route", "server"},
    "deployer_probe_correct": {"route", "server"},
    "deployer_probes_total": {"route", "server", "kind"},
    "deployer_fallback_active": {"route"},
    "deployer_fallbacks_total": {"route", "reason"},
    "deployer_shadow_total": {"route", "server", "kind"},
    "deployer_shadow_ttft_seconds": {"route", "server"},
    "deployer_shadow_tpot_seconds": {"route", "server"},
    "deployer_table_generation": set(),
    "deployer_open_streams": set(),
    "deployer_event_loop_lag_seconds": set(),
}
"""What dashboards and alerts count on."""


@pytest.fixture
def metrics() -> GatewayMetrics:
    made = GatewayMetrics()
    made.apply(table(route({"a": 1.0}, fallback="b"), upstreams=(upstream("a"), upstream("b"))))
    made.keep_keys(frozenset({"ops"}))
    return made


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def use_everything(metrics: GatewayMetrics) -> None:
    full: dict[str, Any] = {
        "ttft": 0.1, "tpot": 0.02, "queued": 0.01, "prompt_tokens": 7, "output_tokens": 5,
    }  # fmt: skip
    metrics.observe(outcome("a", **full))
    metrics.observe(outcome("a", shadow=True, **full))
    metrics.observe(outcome("a", probe=True, **full))
    metrics.event("fallback_on", route="chat", fallback="b", reason="quality", details={})
    metrics.stand([Standing("chat", "a", True, (), 0.5)], {"chat": True})
    metrics.load({"a": 2}, {"chat": 3}, 1)
    metrics.lag(0.2)


def test_every_name_and_its_labels(metrics: GatewayMetrics) -> None:
    use_everything(metrics)
    text = metrics.render().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("deployer_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = {label for s in family.samples for label in s.labels} - {"le"}
            assert family.documentation
    assert found == NAMES
    assert "_created" not in text
    assert "process_resident_memory_bytes" in text


def test_a_request_is_counted(metrics: GatewayMetrics) -> None:
    use_everything(metrics)
    both = {"route": "chat", "server": "a"}
    assert value(metrics, "deployer_requests_total", kind="ok", **both) == 1
    assert value(metrics, "deployer_ttft_seconds_sum", **both) == 0.1
    assert value(metrics, "deployer_tpot_seconds_count", **both) == 1
    assert value(metrics, "deployer_request_seconds_sum", **both) == 1.0
    assert value(metrics, "deployer_queue_seconds_count", route="chat") == 1
    assert value(metrics, "deployer_tokens_total", direction="prompt", **both) == 7
    assert value(metrics, "deployer_tokens_total", direction="output", **both) == 5
    assert value(metrics, "deployer_key_tokens_total", key="ops") == 12
    assert value(metrics, "deployer_shadow_total", kind="ok", **both) == 1
    assert value(metrics, "deployer_probes_total", kind="ok", **both) == 1
    assert value(metrics, "deployer_fallbacks_total", route="chat", reason="quality") == 1
    assert value(metrics, "deployer_probe_correct", **both) == 0.5
    assert value(metrics, "deployer_running", server="b") == 0
    assert value(metrics, "deployer_waiting", route="chat") == 3


def test_a_failed_request_has_no_request_time(metrics: GatewayMetrics) -> None:
    metrics.observe(outcome("a", "upstream_error", status=502))
    both = {"route": "chat", "server": "a"}
    assert value(metrics, "deployer_requests_total", kind="upstream_error", **both) == 1
    assert value(metrics, "deployer_request_seconds_count", **both) is None


def test_every_reason_is_there_from_the_start(metrics: GatewayMetrics) -> None:
    metrics.refused("size")
    counts = {r: value(metrics, "deployer_refused_total", reason=r) for r in REASONS}
    assert counts == {**dict.fromkeys(REASONS, 0.0), "size": 1.0}


def test_what_clients_say_makes_no_series(metrics: GatewayMetrics) -> None:
    before = metrics.render().count(b"\n")
    for number in range(50):
        metrics.observe(outcome(f"s{number}", route=f"r{number}", prompt_tokens=1))  # fmt: skip
    assert metrics.render().count(b"\n") < before + 60  # those of no route and no server
    assert b"r7" not in metrics.render() and b"s7" not in metrics.render()


def test_series_go_with_their_servers_routes_and_keys(metrics: GatewayMetrics) -> None:
    use_everything(metrics)
    metrics.observe(outcome("b"))
    metrics.apply(table(route({"b": 1.0}, model="other"), upstreams=(upstream("b"),)))
    metrics.keep_keys(frozenset())
    text = metrics.render().decode()
    assert '"a"' not in text and '"chat"' not in text and '"ops"' not in text
    assert value(metrics, "deployer_server_up", server="b") == 1
    metrics.observe(outcome("a"))  # finished late
    assert '"a"' not in metrics.render().decode()


def test_servers_up_and_their_restarts(metrics: GatewayMetrics) -> None:
    one = route({"a": 1.0})

    def apply(**changes: Any) -> None:
        metrics.apply(table(one, upstreams=(upstream("a", **changes),), generation=7))

    apply(restarts=2)
    assert value(metrics, "deployer_server_restarts_total", server="a") == 2
    apply(restarts=3, state="restarting")
    assert value(metrics, "deployer_server_restarts_total", server="a") == 3
    assert value(metrics, "deployer_server_up", server="a") == 0
    apply(restarts=0, instance="a.2")
    apply(restarts=1, instance="a.2")
    assert value(metrics, "deployer_server_restarts_total", server="a") == 4
    assert value(metrics, "deployer_table_generation") == 7


def test_the_lag_is_the_largest_of_late(metrics: GatewayMetrics) -> None:
    metrics.lag(0.5)
    for _ in range(149):
        metrics.lag(0.001)
    metrics.render()
    assert value(metrics, "deployer_event_loop_lag_seconds") == 0.5
    metrics.lag(0.001)
    metrics.render()
    assert value(metrics, "deployer_event_loop_lag_seconds") == 0.001


def test_two_gateways_do_not_share_a_registry() -> None:
    GatewayMetrics().refused("key")
    assert value(GatewayMetrics(), "deployer_refused_total", reason="key") == 0
