"""Monitoring: the scrape job, the alerts and the dashboard, and that what they ask for exists.

promtool judges the files in integration/test_monitoring.py. After a wanted change the kept ones are
renewed by DEPLOYER_RENEW_GOLDEN=1 .venv/bin/pytest -q tests/unit/test_exporting_monitoring.py
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from export_examples import GOLDEN, RENEW, renewing
from guard import REPOSITORY
from made_up_bundle import deployment
from prometheus_client import Counter, Gauge, Histogram, generate_latest

from deployer.exporting import RENDERERS, UNMEASURED, dashboard, monitoring
from deployer.exporting.alerts import ERROR_RATE, alerts
from deployer.gateway import scraping
from deployer.gateway.exposition import samples
from deployer.gateway.metrics import REASONS, GatewayMetrics
from deployer.recipe.model import Slo

OBJECTIVES = {"ttft_p95_ms": 500.0, "tpot_p95_ms": 40.0, "e2e_p95_ms": 9000.0}
OPTIONS = {"port": 8000, "key_secret": "/etc/prometheus/deployer.key"}
EXPRESSIONS = [
    *((alert.name, alert.expr) for alert in alerts(Slo(**OBJECTIVES))),
    *(
        (panel.title, expr)
        for _, panels in dashboard.rows()
        for panel in panels
        for expr, _ in panel.targets
    ),
]
SELECTOR = re.compile(r"([a-z_:]+[a-z0-9_:]*)\{([^}]*)\}")
OURS = re.compile(r"\b((?:deployer|process)_[a-z0-9_]+)")


def rendered(**options: Any) -> dict[str, str]:
    recipe = {"loadtest": {"slo": OBJECTIVES}}
    return monitoring.render(deployment(options={**OPTIONS, **options}, recipe=recipe))


def known_metrics() -> dict[str, set[str]]:
    """Every series of the gateway's page -> its labels."""
    found: dict[str, set[str]] = {name: {"server"} for name in scraping.UNIFIED}
    found[scraping.DROPPED] = {"server"}
    registry = GatewayMetrics().registry
    for collector, names in registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            if isinstance(collector, Histogram):
                found[f"{collector._name}_bucket"] = labels | {"le"}
            if isinstance(collector, Counter) and not name.endswith("_total"):
                continue
            if isinstance(collector, Counter | Gauge):
                found[name] = labels
    page = generate_latest(registry).decode()
    return found | {one.name: set(one.labels) for one in samples(page, "process_")}


METRICS = known_metrics()


def test_every_metric_and_label_that_is_asked_for_exists() -> None:
    for title, expr in EXPRESSIONS:
        ours = set(OURS.findall(re.sub(r'"[^"]*"', '""', expr)))
        assert ours or expr.startswith("up{"), title
        assert sorted(ours - set(METRICS)) == [], title
        for metric, matchers in SELECTOR.findall(expr):
            known = {"instance", "job"} | METRICS.get(metric, set())
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known, expr
        labels = {"instance", "job"} | {label for name in ours for label in METRICS[name]}
        for grouped in re.findall(r"by \(([^)]*)\)", expr):
            assert {label.strip() for label in grouped.split(",")} <= labels, expr
        assert set(re.findall(r'reason="(\w+)"', expr)) <= set(REASONS)


def test_labels_in_words_are_labels_of_the_expression() -> None:
    for alert in alerts(Slo(**OBJECTIVES)):
        named = set(re.findall(r"\$labels\.(\w+)", alert.summary))
        grouped = re.search(r"by \(([^)]*)\)", alert.expr)
        if grouped:
            given = {label.strip() for label in grouped[1].split(",")} - {"le"}
        else:
            given = {label for name in OURS.findall(alert.expr) for label in METRICS[name]}
        assert named <= given, alert.name


def test_objectives_of_the_recipe_are_thresholds() -> None:
    found = {alert.name: alert.expr for alert in alerts(Slo(**OBJECTIVES, max_error_rate=0.05))}
    assert found["DeployerTtftOverObjective"].endswith("> 0.5")
    assert found["DeployerTpotOverObjective"].endswith("> 0.04")
    assert found["DeployerRequestOverObjective"].endswith("> 9")
    assert found["DeployerErrorRate"].endswith("> 0.05")
    without = {alert.name: alert.expr for alert in alerts(Slo())}
    assert not [name for name in without if name.endswith("OverObjective")]
    assert without["DeployerErrorRate"].endswith(f"> {ERROR_RATE}")


def test_the_scrape_job_is_the_one_the_alerts_ask_for() -> None:
    found = yaml.safe_load(rendered()["prometheus.yml"])
    (job,) = found["scrape_configs"]
    assert job["job_name"] == "deployer"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": OPTIONS["key_secret"]}
    assert found["rule_files"] == ["alerts.yml"]
    open_to_all = yaml.safe_load(rendered(key_secret=None, host="::")["prometheus.yml"])
    (job,) = open_to_all["scrape_configs"]
    assert "authorization" not in job
    assert job["static_configs"] == [{"targets": ["[::1]:8000"]}]


def test_the_readme_names_every_alert_and_where_the_key_is() -> None:
    readme = rendered()["README.md"]
    assert OPTIONS["key_secret"] in readme and "http://127.0.0.1:8000" in readme
    assert all(alert.name in readme for alert in alerts(Slo(**OBJECTIVES)))
    assert "--key-secret FILE" in rendered(key_secret=None)["README.md"]


def test_panels_have_ids_and_places_of_their_own() -> None:
    document = json.loads(dashboard.dashboard())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < dashboard.WIDTH, panel["title"]
        taken |= cells
    graphs = [panel for panel in panels if panel["type"] != "row"]
    assert all(target["expr"] for panel in graphs for target in panel["targets"])
    assert {panel["datasource"]["uid"] for panel in graphs} == {"${datasource}"}
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in graphs])))
    named = {variable["name"] for variable in document["templating"]["list"]}
    assert used - {"__rate_interval", "datasource"} <= named


def test_exported_files_are_as_they_were() -> None:
    files = rendered()
    for name in ("prometheus.yml", "alerts.yml", "dashboard.json"):
        path = GOLDEN / f"monitoring-{name}"
        if renewing():
            path.write_text(files[name], encoding="utf-8")
        assert path.exists(), f"write it with {RENEW}=1"
        assert files[name] == path.read_text(encoding="utf-8")


def test_no_server_is_started_for_it() -> None:
    assert set(RENDERERS) >= UNMEASURED == {"monitoring"}


def rows_of_the_document() -> dict[str, str]:
    """First cell -> the rest, of every row of a table."""
    text = (REPOSITORY / "docs" / "observability.md").read_text("utf-8")
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE))


def test_the_document_says_what_to_do_at_each_alert_and_explains_each_metric() -> None:
    documented = rows_of_the_document()
    for alert in alerts(Slo(**OBJECTIVES)):
        assert len(documented.get(alert.name, "")) > 40, alert.name
    for metric, labels in METRICS.items():
        if not metric.startswith("process_"):
            row = documented[metric.removesuffix("_bucket")]
            told = set(re.findall(r"`(\w+)`", row.partition("|")[0]))
            assert told == labels - {"le"}, metric
