"""Monitoring of a gateway: a Prometheus configuration, alert rules, a Grafana dashboard. Pure.

The objectives of the bundle's recipe (`loadtest.slo`) are the thresholds of the alerts. Nothing
is measured for it, and no server is started.
"""

from __future__ import annotations

from typing import Any

from deployer.exporting.addresses import url
from deployer.exporting.alerts import JOB, Alert, alerts, error_limit
from deployer.exporting.dashboard import TITLE, dashboard
from deployer.exporting.deployment import Deployment
from deployer.exporting.yaml_text import Notes, document, file
from deployer.recipe.model import Slo

PROMETHEUS, ALERTS, DASHBOARD = "prometheus.yml", "alerts.yml", "dashboard.json"
INTERVAL = "15s"


def render(deployment: Deployment) -> dict[str, str]:
    """prometheus.yml, alerts.yml, dashboard.json and a README; file name -> content.

    `options.host` and `options.port` are the gateway's, `options.key_secret` the file with an API
    key on the machine that Prometheus runs on.
    """
    found = alerts(slo_of(deployment))
    return {
        PROMETHEUS: _prometheus(deployment),
        ALERTS: _rules(deployment, found),
        DASHBOARD: dashboard(),
        "README.md": _readme(deployment, found),
    }


def slo_of(deployment: Deployment) -> Slo:
    """The objectives of the bundle's recipe."""
    loadtest = deployment.manifest.recipe.get("loadtest") or {}
    return Slo.model_validate(loadtest.get("slo") or {}, strict=False)


def _prometheus(deployment: Deployment) -> str:
    key = deployment.options.key_secret
    scrape: dict[str, Any] = {
        "job_name": JOB,
        "scheme": "http",
        "authorization": {"type": "Bearer", "credentials_file": key} if key else None,
        "static_configs": [{"targets": [_target(deployment)]}],
    }
    notes: Notes = {
        ("scrape_configs", 0, "scheme"): "https where the gateway has a certificate",
        (
            "scrape_configs",
            0,
            "static_configs",
            0,
            "targets",
        ): "the gateway; list every one of them",
    }
    found = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [ALERTS],
        "scrape_configs": [scrape],
    }
    return file(_header(deployment), [document(found, notes)])


def _target(deployment: Deployment) -> str:
    """Host and port, as Prometheus wants them."""
    return url(deployment.options.host, deployment.options.port).partition("://")[2]


def _rules(deployment: Deployment, found: tuple[Alert, ...]) -> str:
    slo = slo_of(deployment)
    why = "the recipe's loadtest.slo.max_error_rate"
    if slo.max_error_rate < error_limit(slo):
        why = "not from the recipe, which allows fewer: a load test has no bad moments"
    notes: dict[tuple[str | int, ...], str] = {}
    for number, alert in enumerate(found):
        place = ("groups", 0, "rules", number)
        if alert.name == "DeployerErrorRate":
            notes[place] = f"{error_limit(slo):g}: {why}"
        elif alert.name.endswith("OverObjective"):
            notes[place] = "from the recipe's loadtest.slo"
    rules = [alert.as_rule() for alert in found]
    groups = {"groups": [{"name": JOB, "rules": rules}]}
    return file(_header(deployment), [document(groups, notes)])


def _header(deployment: Deployment) -> list[str]:
    manifest = deployment.manifest
    return [
        f"Made by `deployer export --to monitoring` for {manifest.name}, sha256:{manifest.digest}.",
    ]


def _readme(deployment: Deployment, found: tuple[Alert, ...]) -> str:
    manifest, options = deployment.manifest, deployment.options
    address = url(options.host, options.port)
    key = (
        f"Prometheus sends the API key in `{options.key_secret}`:\n"
        "it must be able to read that file, which holds the key and nothing else."
        if options.key_secret
        else "No key is sent. That is enough where the gateway has no keys, or Prometheus runs on\n"
        "the gateway's machine and asks it by the loopback. Else export with `--key-secret FILE`."
    )
    rows = "\n".join(f"| {one.name} | {one.severity} | {one.lasts} |" for one in found)
    return f"""# Monitoring of the gateway that serves {manifest.name}

Made by `deployer export --to monitoring` for the bundle with the digest
`{manifest.digest}`.

The gateway is expected at {address}; name another with `--host` and `--port`.
{key}

1. Check the files, then start Prometheus with them, or take the scrape job and the rules over into
   a configuration you have:

   ```
   promtool check config {PROMETHEUS}
   prometheus --config.file={PROMETHEUS}
   ```
2. Import `{DASHBOARD}` into Grafana (Dashboards, New, Import), and choose the Prometheus data
   source in it: "{TITLE}".
3. Alertmanager, or Grafana, brings the alerts to people. `page` means that requests fail or soon
   may, `ticket` that somebody should look.

| alert | severity | holds for |
|---|---|---|
{rows}

docs/observability.md of deployer says what each metric means and what to do at each alert.
"""
