"""A Grafana dashboard of a gateway and its servers, as the JSON that Grafana imports. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deployer.exporting.alerts import FAILED

SCHEMA = 39
"""`schemaVersion` of Grafana 11; newer ones read it too."""
UID = "deployer-gateway"
TITLE = "deployer: gateway and servers"
WIDTH, HEIGHT = 24, 8
RATE = "$__rate_interval"
"""Grafana's own window for `rate`, at least four scrapes wide."""
_HERE = 'instance=~"$instance"'
_ROUTE = f'{_HERE}, route=~"$route"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
Target = tuple[str, str]
"""An expression and the legend of its series."""


@dataclass(frozen=True)
class Panel:
    """A graph. `unit` is one of Grafana's: reqps, s, percentunit, short, bytes."""

    title: str
    unit: str
    targets: tuple[Target, ...]


def dashboard() -> str:
    """The dashboard's JSON text."""
    return json.dumps(_document(), indent=1) + "\n"


def rows() -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """The rows: title, panels."""
    return (
        ("Traffic", _traffic()),
        ("Latency", _latency()),
        ("Errors and refusals", _errors()),
        ("Queue and slots", _queue()),
        ("Engines", _engines()),
        ("Servers, fallback and probes", _servers()),
        ("Gateway process", _process()),
    )


def _rate(metric: str, by: str, where: str = _ROUTE) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def _quantiles(metric: str, by: str) -> tuple[Target, ...]:
    """The median, 95th and 99th percentile of a histogram, for each of `by`."""
    buckets = _rate(f"{metric}_bucket", f"{by}, le")
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return tuple(
        (f"histogram_quantile({share}, {buckets})", f"p{share * 100:g} {legend}")
        for share in (0.5, 0.95, 0.99)
    )


def _traffic() -> tuple[Panel, ...]:
    return (
        Panel(
            "Requests a second", "reqps",
            ((_rate("deployer_requests_total", "route, server"), "{{route}} {{server}}"),),
        ),
        Panel(
            "Tokens a second", "short",
            ((_rate("deployer_tokens_total", "server, direction"), "{{server}} {{direction}}"),),
        ),
        Panel(
            "Tokens a second, by key", "short",
            ((f"topk(10, {_rate('deployer_key_tokens_total', 'key', _HERE)})", "{{key}}"),),
        ),
    )  # fmt: skip


def _latency() -> tuple[Panel, ...]:
    by = "route, server"
    return (
        Panel("Time to first token", "s", _quantiles("deployer_ttft_seconds", by)),
        Panel("Time per output token", "s", _quantiles("deployer_tpot_seconds", by)),
        Panel("Time of whole requests", "s", _quantiles("deployer_request_seconds", by)),
    )


def _errors() -> tuple[Panel, ...]:
    failed = _rate("deployer_requests_total", "route", f'{_ROUTE}, kind=~"{FAILED}"')
    return (
        Panel(
            "Share of requests that failed", "percentunit",
            ((f"{failed} / {_rate('deployer_requests_total', 'route')}", "{{route}}"),),
        ),
        Panel(
            "Outcomes other than ok", "reqps",
            ((_rate("deployer_requests_total", "kind, server", f'{_ROUTE}, kind!="ok"'),
              "{{kind}} {{server}}"),),
        ),
        Panel(
            "Refused by the gateway", "reqps",
            ((_rate("deployer_refused_total", "reason", _HERE), "{{reason}}"),),
        ),
    )  # fmt: skip


def _queue() -> tuple[Panel, ...]:
    return (
        Panel(
            "Requests that wait for a slot", "short",
            ((f"deployer_waiting{{{_ROUTE}}}", "{{route}}"),),
        ),
        Panel(
            "Requests that run", "short",
            ((f"deployer_running{{{_HERE}}}", "{{server}}"),
             (f"deployer_open_streams{{{_HERE}}}", "open streams")),
        ),
        Panel("Time in the queue", "s", _quantiles("deployer_queue_seconds", "route")),
    )  # fmt: skip


def _engines() -> tuple[Panel, ...]:
    prompt, output = "deployer_engine_prompt_tokens_total", "deployer_engine_output_tokens_total"
    return (
        Panel(
            "Tokens a second, as the engines count", "short",
            ((_rate(prompt, "server", _HERE), "{{server}} prompt"),
             (_rate(output, "server", _HERE), "{{server}} output")),
        ),
        Panel(
            "Requests in the engines", "short",
            ((f"deployer_engine_running{{{_HERE}}}", "{{server}} running"),
             (f"deployer_engine_waiting{{{_HERE}}}", "{{server}} waiting")),
        ),
        Panel(
            "Key-value cache in use", "percentunit",
            ((f"deployer_engine_cache_used_ratio{{{_HERE}}}", "{{server}}"),),
        ),
    )  # fmt: skip


def _servers() -> tuple[Panel, ...]:
    restarts = f"increase(deployer_server_restarts_total{{{_HERE}}}[{RATE}])"
    return (
        Panel(
            "Servers that are ready (1) and fit (1)", "short",
            ((f"deployer_server_up{{{_HERE}}}", "{{server}} up"),
             (f"deployer_server_fit{{{_ROUTE}}}", "{{server}} fit for {{route}}")),
        ),
        Panel("Restarts", "short", ((restarts, "{{server}}"),)),
        Panel(
            "Right answers to the probes' questions", "percentunit",
            ((f"deployer_probe_correct{{{_ROUTE}}}", "{{server}} {{route}}"),),
        ),
        Panel(
            "Fallback answers (1)", "short",
            ((f"deployer_fallback_active{{{_ROUTE}}}", "{{route}}"),),
        ),
        Panel(
            "Why the fallback was taken", "short",
            ((f"sum by (route, reason) (increase(deployer_fallbacks_total{{{_ROUTE}}}[{RATE}]))",
              "{{route}}: {{reason}}"),),
        ),
        Panel(
            "Probes", "reqps",
            ((_rate("deployer_probes_total", "server, kind"), "{{server}} {{kind}}"),),
        ),
        Panel(
            "Copies for shadow servers", "reqps",
            ((_rate("deployer_shadow_total", "server, kind"), "{{server}} {{kind}}"),),
        ),
        Panel(
            "Copies: time to first token", "s",
            _quantiles("deployer_shadow_ttft_seconds", "route, server"),
        ),
        Panel(
            "Copies: time per output token", "s",
            _quantiles("deployer_shadow_tpot_seconds", "route, server"),
        ),
    )  # fmt: skip


def _process() -> tuple[Panel, ...]:
    ours = f'{_HERE}, job="deployer"'
    return (
        Panel(
            "Processor cores the gateway uses", "short",
            ((f"rate(process_cpu_seconds_total{{{ours}}}[{RATE}])", "{{instance}}"),),
        ),
        Panel(
            "Memory of the gateway", "bytes",
            ((f"process_resident_memory_bytes{{{ours}}}", "{{instance}}"),),
        ),
        Panel(
            "Lateness of the event loop", "s",
            ((f"deployer_event_loop_lag_seconds{{{_HERE}}}", "{{instance}}"),),
        ),
        Panel(
            "Changes of the deployment applied", "short",
            ((f"deployer_table_generation{{{_HERE}}}", "{{instance}}"),),
        ),
        Panel(
            "Open files", "short", ((f"process_open_fds{{{ours}}}", "{{instance}}"),),
        ),
        Panel(
            "Lines of engines' pages left out", "short",
            ((_rate("deployer_engine_lines_dropped_total", "server", _HERE), "{{server}}"),),
        ),
    )  # fmt: skip


def _document() -> dict[str, Any]:
    return {
        "uid": UID,
        "title": TITLE,
        "tags": ["deployer"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": list(_panels()),
    }


def _variables() -> list[dict[str, Any]]:
    datasource = {
        "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus",
    }  # fmt: skip
    return [
        datasource,
        _variable("instance", "label_values(deployer_table_generation, instance)"),
        _variable("route", f"label_values(deployer_requests_total{{{_HERE}}}, route)"),
    ]


def _variable(name: str, query: str) -> dict[str, Any]:
    """A list of a label's values from which several can be chosen, or all."""
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Rows of three panels each, from top to bottom, with ids of their own."""
    number, top, wide = 0, 0, WIDTH // 3
    for title, panels in rows():
        number += 1
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": [],
               "collapsed": False}  # fmt: skip
        top += 1
        for position, panel in enumerate(panels):
            number += 1
            place = {
                "x": position % 3 * wide, "y": top + position // 3 * HEIGHT,
                "w": wide, "h": HEIGHT,
            }  # fmt: skip
            yield _graph(number, panel, place)
        top += -(-len(panels) // 3) * HEIGHT


def _graph(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": expr,
             "legendFormat": legend, "range": True}
            for index, (expr, legend) in enumerate(panel.targets)
        ],
    }  # fmt: skip
