"""The exported monitoring, judged by Prometheus's own programs, and traces of a real gateway.

The gateway is the real one; behind it are fake engines. promtool and prometheus come with Debian's
package prometheus.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import yaml
from command_line import must
from made_up_bundle import deployment
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deployer.artifacts import Bundle
from deployer.deployments.state import DeploymentFolder, DeploymentRecord
from deployer.exporting import dashboard, monitoring
from deployer.exporting.alerts import Alert, alerts
from deployer.gateway.routing import Table, Upstream
from deployer.home import Home
from deployer.recipe.deployment import Gateway, Route
from deployer.recipe.model import Slo
from deployer.serving.identity import start_mark

pytestmark = pytest.mark.integration

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="needs promtool and prometheus: apt install prometheus",
)
OBJECTIVES = {"ttft_p95_ms": 500.0, "tpot_p95_ms": 40.0, "e2e_p95_ms": 9000.0}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT, ANSWER = "tell-nobody-this-prompt", "tell-nobody-this-answer"
PAGE = """# HELP llamacpp:tokens_predicted_total Number of tokens.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 41
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
this line is wrong
"""


class Recorder(ThreadingHTTPServer):
    """A fake engine and a fake collector: it keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.chats: list[dict[str, str]] = []
        self.traces: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Recorder

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(PAGE.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            self.server.traces.append(body)
            return self.answer(b"")
        self.server.chats.append({name.lower(): value for name, value in self.headers.items()})
        message = {"role": "assistant", "content": ANSWER}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        chat = {"object": "chat.completion", "choices": [{"message": message}], "usage": usage}
        return self.answer(json.dumps(chat).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first value that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"nothing came within {seconds} s")


@dataclass
class Running:
    """A gateway with what stands behind it."""

    url: str
    folder: Path
    pid: int
    engine: Recorder
    collector: Recorder
    answers: list[httpx.Response] = field(default_factory=list)

    def page(self) -> str:
        return httpx.get(f"{self.url}/metrics", trust_env=False).text


def upstream(name: str, url: str, state: str) -> Upstream:
    return Upstream(
        name=name, instance=f"shop.{name}.1", url=url, model="m", engine="llama.cpp", bundle="b",
        digest="d", state=state, slots=2, context=512,
    )  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway that answered some requests: one server is ready, another one is not."""
    folder = tmp_path_factory.mktemp("gateway")
    port = free_port()
    with recorder() as engine, recorder() as collector:
        table = Table(
            deployment="shop",
            generation=4,
            gateway=Gateway(port=port, traces=collector.url),
            routes=(Route.model_validate({"model": "chat", "to": {"q4": 1.0, "q8": 0.0}}),),
            upstreams=(
                upstream("q4", engine.url, "ready"),
                upstream("q8", engine.url, "restarting"),
            ),
        )
        (folder / "table.json").write_text(table.model_dump_json(), encoding="utf-8")
        with (folder / "gateway.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "deployer.gateway", str(folder)], stdout=log, stderr=log
            )
        found = Running(f"http://127.0.0.1:{port}", folder, child.pid, engine, collector)
        try:
            wait_for(lambda: httpx.get(f"{found.url}/health", trust_env=False).is_success)
            ask(found, 5)
            wait_for(lambda: "deployer_engine_running" in found.page())
            yield found
        finally:
            child.terminate()
            assert child.wait(20) == 0, (folder / "gateway.log").read_text()


def ask(found: Running, count: int) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}
    with httpx.Client(trust_env=False) as client:
        for _ in range(count):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = client.post(f"{found.url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            found.answers.append(answer)


def test_each_request_is_a_span_within_its_client_s_trace(gateway: Running) -> None:
    def sent() -> list[Any]:
        found = []
        for body in gateway.collector.traces:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found if len(found) >= len(gateway.answers) else []

    spans = wait_for(sent)
    assert len(spans) == len(gateway.answers)
    span = spans[0]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    told = {one.key: one.value for one in span.attributes}
    assert told["gen_ai.request.model"].string_value == "chat"
    assert told["gen_ai.operation.name"].string_value == "chat"
    assert told["gen_ai.usage.input_tokens"].int_value == 7
    assert told["gen_ai.usage.output_tokens"].int_value == 3
    assert told["deployer.server"].string_value == "q4"
    assert told["server.port"].int_value == gateway.engine.server_port
    assert told["http.response.status_code"].int_value == 200
    passed_on = {headers["traceparent"] for headers in gateway.engine.chats}
    assert passed_on == {f"00-{TRACE}-{one.span_id.hex()}-01" for one in spans}
    sent_bytes = b"".join(gateway.collector.traces)
    assert PROMPT.encode() not in sent_bytes and ANSWER.encode() not in sent_bytes


@pytest.mark.faults
def test_a_dead_collector_holds_nothing_up() -> None:
    """Its own interpreter, since tracing changes what the whole process logs."""
    program = """
import sys, time
from deployer.gateway.outcome import Outcome
from deployer.gateway.tracing import Tracer
tracer = Tracer.of(sys.argv[1])
began = time.monotonic()
for _ in range(3_000):
    with tracer.request({}, "chat", "m", True) as trace:
        trace.observe(Outcome("m", "q4", "k", 200, "ok", 1.0, ttft=0.1), None)
asked = time.monotonic() - began
time.sleep(2.5)
began = time.monotonic()
tracer.close()
print(asked, time.monotonic() - began)
"""
    address = f"http://127.0.0.1:{free_port()}"
    ran = subprocess.run(
        [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    asked, closed = map(float, ran.stdout.split())
    assert asked / 3_000 < 0.005 and closed < 4.0
    assert ran.stderr.count("traces cannot be sent") == 1
    assert "Traceback" not in ran.stderr


def promtool(*words: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, words)], input=text, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@needs_prometheus
def test_the_gateway_s_page_is_what_prometheus_reads(gateway: Running) -> None:
    page = gateway.page()
    assert 'llamacpp:tokens_predicted_total{deployer_server="q4"} 41' in page
    assert 'deployer_engine_output_tokens_total{server="q4"} 41.0' in page
    assert 'deployer_engine_running{server="q4"} 1.0' in page
    checked = promtool("check", "metrics", text=page)
    assert "error while linting" not in checked.stderr, checked.stderr
    told = [line for line in checked.stderr.splitlines() if line.startswith("deployer_")]
    assert told == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, gateway: Running) -> Path:
    """What `--to monitoring` writes for the gateway."""
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "key").write_text("any", encoding="utf-8")
    made = deployment(
        options={"port": int(gateway.url.rpartition(":")[2]), "key_secret": "key"},
        recipe={"loadtest": {"slo": OBJECTIVES}},
    )
    for name, text in monitoring.render(made).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_command_starts_no_server(demo_bundle: Bundle, own_home: Home, tmp_path: Path) -> None:
    words = ("export", demo_bundle.root, "--to", "monitoring", "--port", "8000")
    made = must(*words, "--output", tmp_path / "made", home=own_home)
    assert made["footprint"]["measured"] is False and not own_home.servers.exists()
    written = {path.name for path in (tmp_path / "made").iterdir()}
    assert written == set(made["files"]) >= {"prometheus.yml", "alerts.yml", "dashboard.json"}
    assert "127.0.0.1:8000" in (tmp_path / "made" / "prometheus.yml").read_text()


@needs_prometheus
def test_promtool_accepts_the_files(exported: Path) -> None:
    for words in (("check", "config", exported / "prometheus.yml"),
                  ("check", "rules", exported / "alerts.yml")):  # fmt: skip
        checked = promtool(*words)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [
        expr.replace("$__rate_interval", "5m")
        for _, panels in dashboard.rows()
        for panel in panels
        for expr, _ in panel.targets
    ]
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


HERE = 'instance="g"'
BOTH = f'{HERE}, route="chat", server="q4"'


def slow(metric: str, under: str, over: str) -> dict[str, str]:
    """A histogram in which 9 of 10 values lie between two bounds."""
    return {
        f'{metric}_bucket{{{BOTH}, le="{under}"}}': "0+1x30",
        f'{metric}_bucket{{{BOTH}, le="{over}"}}': "0+10x30",
        f'{metric}_bucket{{{BOTH}, le="+Inf"}}': "0+10x30",
    }


CASES: dict[str, tuple[dict[str, str], str]] = {
    "DeployerGatewayAbsent": ({f'up{{{HERE}, job="deployer"}}': "1 0x30"}, "instance job"),
    "DeployerNobodyHealthy": (
        {f'deployer_refused_total{{{HERE}, reason="unhealthy"}}': "0x18 3x10"}, "instance"),
    "DeployerServerDown": ({f'deployer_server_up{{{HERE}, server="q4"}}': "1 0x30"},
                           "instance server"),
    "DeployerServerRestarts": (
        {f'deployer_server_restarts_total{{{HERE}, server="q4"}}': "0+1x30"}, "instance server"),
    "DeployerServerUnfit": ({f"deployer_server_fit{{{BOTH}}}": "1 0x30"}, "instance route server"),
    "DeployerFallbackActive": ({f'deployer_fallback_active{{{HERE}, route="chat"}}': "0 1x30"},
                               "instance route"),
    "DeployerQualityProbeFailing": ({f"deployer_probe_correct{{{BOTH}}}": "1 0.5x30"},
                                    "instance route server"),
    "DeployerErrorRate": (
        {f'deployer_requests_total{{{BOTH}, kind="ok"}}': "0+60x30",
         f'deployer_requests_total{{{BOTH}, kind="truncated"}}': "0+3x30"}, "instance route"),
    "DeployerTtftOverObjective": (slow("deployer_ttft_seconds", "0.5", "1"),
                                  "instance route server"),
    "DeployerTpotOverObjective": (slow("deployer_tpot_seconds", "0.03", "0.1"),
                                  "instance route server"),
    "DeployerRequestOverObjective": (slow("deployer_request_seconds", "5", "20"),
                                     "instance route server"),
    "DeployerQueueGrowing": ({f'deployer_waiting{{{HERE}, route="chat"}}': "3x30"},
                             "instance route"),
    "DeployerTooManyRequests": ({f'deployer_refused_total{{{HERE}, reason="busy"}}': "0+5x30"},
                                "instance"),
    "DeployerWrongKeys": ({f'deployer_refused_total{{{HERE}, reason="key"}}': "0+120x30"},
                          "instance"),
    "DeployerCacheFull": ({f'deployer_engine_cache_used_ratio{{{HERE}, server="q4"}}': "0.99x30"},
                          "instance server"),
    "DeployerEventLoopLag": ({f"deployer_event_loop_lag_seconds{{{HERE}}}": "0.5x30"}, "instance"),
}  # fmt: skip
"""Alert -> series in which it must fire after 20 minutes, and the labels it then has."""
LABELS = {"instance": "g", "job": "deployer", "route": "chat", "server": "q4"}
HEALTHY = {
    f'up{{{HERE}, job="deployer"}}': "1x30",
    **{f'deployer_refused_total{{{HERE}, reason="{reason}"}}': "0x30"
       for reason in ("unhealthy", "busy")},
    f'deployer_refused_total{{{HERE}, reason="key"}}': "0+6x30",
    f'deployer_server_up{{{HERE}, server="q4"}}': "1x30",
    f'deployer_server_restarts_total{{{HERE}, server="q4"}}': "0x10 1x20",
    f"deployer_server_fit{{{BOTH}}}": "1x30",
    f'deployer_fallback_active{{{HERE}, route="chat"}}': "0x30",
    f"deployer_probe_correct{{{BOTH}}}": "1x30",
    f'deployer_requests_total{{{BOTH}, kind="ok"}}': "0+60x30",
    f'deployer_requests_total{{{BOTH}, kind="cancelled"}}': "0+60x30",
    **{f'deployer_ttft_seconds_bucket{{{BOTH}, le="{le}"}}': "0+10x30" for le in ("0.3", "+Inf")},
    f'deployer_waiting{{{HERE}, route="chat"}}': "_ 3 0 3 0 3 0 3 0 3 0 3 0 3 0 3 0 3 0 3 0 3 0 3",
    f'deployer_engine_cache_used_ratio{{{HERE}, server="q4"}}': "0.5x30",
    f"deployer_event_loop_lag_seconds{{{HERE}}}": "0.002x30",
}  # fmt: skip


def said(alert: Alert) -> str:
    """Its summary with the labels of the case."""
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: LABELS[found[1]], alert.summary)


def case(series: dict[str, str], checks: list[dict[str, Any]]) -> dict[str, Any]:
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": given, "alert_rule_test": checks}


@needs_prometheus
def test_each_alert_fires_when_it_should_and_only_then(exported: Path) -> None:
    known = {alert.name: alert for alert in alerts(Slo(**OBJECTIVES))}
    assert set(known) == set(CASES)
    tests = []
    for name, (series, labels) in CASES.items():
        alert = known[name]
        fires = {
            "exp_labels": {
                "severity": alert.severity, **{label: LABELS[label] for label in labels.split()}
            },
            "exp_annotations": {"summary": said(alert)},
        }  # fmt: skip
        tests.append(case(series, [{"eval_time": "20m", "alertname": name, "exp_alerts": [fires]}]))
    quiet = [{"eval_time": "20m", "alertname": name, "exp_alerts": []} for name in known]
    tests.append(case(HEALTHY, quiet))
    nothing = {"severity": "page", "job": "deployer"}
    summary = {"summary": known["DeployerGatewayAbsent"].summary}
    gone = [{"exp_labels": nothing, "exp_annotations": summary}]
    tests.append(case({}, [{"eval_time": "20m", "alertname": "DeployerGatewayAbsent",
                            "exp_alerts": gone}]))  # fmt: skip
    path = exported / "tests.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_prometheus
def test_prometheus_reads_the_gateway_and_raises_an_alert(
    gateway: Running, exported: Path, tmp_path: Path
) -> None:
    config = exported / "quick.yml"
    text = (exported / "prometheus.yml").read_text().replace("_interval: 15s", "_interval: 1s")
    config.write_text(text)
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False) as client:

            def value(query: str) -> list[Any]:
                answer = client.get("/query", params={"query": query}).json()
                return list(answer["data"]["result"])

            (up,) = wait_for(lambda: value('up{job="deployer"} == 1'))
            assert up["metric"]["instance"] == gateway.url.removeprefix("http://")
            (answered,) = wait_for(lambda: value('deployer_requests_total{kind="ok"}'))
            assert float(answered["value"][1]) == len(gateway.answers)
            assert answered["metric"]["server"] == "q4"

            def pending() -> list[Any]:
                found = client.get("/alerts").json()["data"]["alerts"]
                return [one for one in found if one["labels"]["alertname"] == "DeployerServerDown"]

            (alert,) = wait_for(pending)
            assert (alert["labels"]["server"], alert["state"]) == ("q8", "pending")
            rules = client.get("/rules").json()["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} == {"ok"}, rules
    finally:
        child.terminate()
        child.wait(20)


def test_top_reads_a_gateway(gateway: Running, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    folder = DeploymentFolder.of(home, "shop")
    folder.root.mkdir(parents=True)
    record = DeploymentRecord(
        name="shop", endpoint=gateway.url, supervisor_pid=gateway.pid, gateway_pid=gateway.pid,
        state="degraded", generation=4, file=None, models=("chat",), keys=False, log="",
        events=str(gateway.folder / "events.jsonl"),
        marks={"supervisor": start_mark(gateway.pid)},
    )  # fmt: skip
    folder.write(record)
    before, enough = len(gateway.answers), Event()

    def keep_asking() -> None:
        while not enough.wait(0.05):
            ask(gateway, 1)

    asking = Thread(target=keep_asking)
    asking.start()
    try:
        document = must("top", "--interval", "1", home=home)
    finally:
        enough.set()
        asking.join()
    (found,) = document["deployments"]
    assert (found["name"], found["state"], found["generation"]) == ("shop", "degraded", 4)
    (route,) = found["routes"]
    assert 0 < route["requests_s"] * document["seconds"] <= len(gateway.answers) - before
    assert (route["errors_s"], route["waiting"], route["fallback"]) == (0.0, 0.0, None)
    assert found["unfit"] == ["q8 (chat)"]
    assert found["memory_bytes"] > 1 << 20
    assert "gateway_started" in [event["event"] for event in found["events"]]
