"""Tasks for real: hostile programs in the sandbox, a served model, the real harness."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from deployer import sbom, serving
from deployer.artifacts import MANIFEST, SBOM, Manifest, list_files
from deployer.errors import PlanError, StageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve
from deployer.store import link_or_copy
from deployer.tasks import humaneval, sandbox
from deployer.tasks.sandbox import Limits, run_program
from deployer.workflow.tasks import run_tasks

pytestmark = pytest.mark.integration

SHORT = Limits(cpu_seconds=1, wall_seconds=3.0, memory_mb=512)


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a listener that nobody may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


HOSTILE = {
    "opens a socket": (
        "import socket\nsocket.create_connection(('127.0.0.1', {port}))", "forbidden",
    ),
    "forks": ("import os\nos.fork()", "forbidden"),
    "starts a program": ("import subprocess\nsubprocess.run(['/bin/true'])", "forbidden"),
    "becomes a program": ("import os\nos.execv('/bin/true', ['true'])", "forbidden"),
    "starts a thread": ("import threading\nthreading.Thread(target=print).start()", "forbidden"),
    "eats memory": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "memory"),
    "wants much memory at once": ("x = [0] * 10**12", "memory"),
    "spins": ("while True: pass", "timeout"),
    "spins in C": ("sum(range(10**18))", "timeout"),
    "will not be stopped": (
        "import signal\nfor n in range(1, 32):\n"
        " if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "timeout",
    ),
    "sleeps": ("import time\ntime.sleep(1000)", "timeout"),
    "writes a huge file": ("open('big', 'wb').write(bytes(1 << 30))", "forbidden"),
    "reads a file of the home": ("open({secret!r}).read()", "forbidden"),
    "deletes a file": ("import os\nos.unlink({secret!r})", "forbidden"),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)", "forbidden"),
    "kills everybody": ("import os\nos.kill(-1, 9)", "forbidden"),
    "prints forever": ("while True: print('x' * 1000)", "timeout"),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "failed",
    ),
    "leaves early": ("import os\nos._exit(0)", "failed"),
    "exits as if all were well": ("raise SystemExit(0)", "failed"),
    "forges a verdict": (
        "import os\nline = b'\\n{{\"word\": \"\", \"verdict\": \"passed\", \"detail\": \"\"}}\\n'\n"
        "for n in range(20):\n"
        " try: os.write(n, line)\n"
        " except OSError: pass\n"
        "os._exit(0)",
        "failed",
    ),
    "floods the verdict": (
        "import os\nfor n in range(20):\n"
        " try:\n  while True: os.write(n, bytes(1 << 16))\n"
        " except OSError: pass\n",
        "timeout",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "failed"),
    "recurses": ("def f(): f()\nf()", "failed"),
    "calls the kernel itself": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.socket(2, 1, 0) == -1 and ctypes.get_errno() == 1\n"
        "assert libc.fork() == -1 and ctypes.get_errno() == 1\n"
        "assert libc.prctl(22, 0, 0, 0, 0) == -1",
        "passed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_program_is_contained_and_told_apart(
    what: str, listener: int, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    source, verdict = HOSTILE[what]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    ran = run_program(source.format(port=listener, secret=str(secret)), SHORT)
    assert ran.verdict == verdict, ran
    assert secret.read_text() == "secret"
    assert "secret" not in ran.detail.replace(str(secret), "")
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before
    assert ran.seconds < SHORT.wall_seconds + 2


def test_a_program_has_no_environment_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYER_API_KEY", "hidden")
    source = "import os, sys\nassert 'DEPLOYER_API_KEY' not in os.environ, list(os.environ)\n"
    source += "assert os.getcwd().endswith('/empty') and 'deployer' not in sys.modules"
    assert run_program(source, SHORT).verdict == "passed"
    assert os.environ["DEPLOYER_API_KEY"] == "hidden"


def test_without_seccomp_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script itself, on a machine whose architecture has no filter."""
    text = (sandbox.WORKERS / "run_program.py").read_text(encoding="utf-8")
    (tmp_path / "run_program.py").write_text(text.replace('"x86_64":', '"other":'))
    monkeypatch.setattr(sandbox, "WORKERS", tmp_path)
    with pytest.raises(PlanError, match="generated code is not run here: no seccomp"):
        run_program("raise SystemError", SHORT)


def test_every_solution_of_humaneval_passes_and_an_empty_one_does_not(home: Home) -> None:
    """The sandbox takes nothing away that an honest solution needs."""
    problems = humaneval.problems(home, SILENT)
    assert len(problems) == 164
    scripts = [humaneval.program(each, each.solution) for each in problems]
    scripts.append(humaneval.program(problems[0], "    pass\n"))
    with ThreadPoolExecutor(2) as pool:
        *good, bad = pool.map(run_program, scripts)
    assert [
        each.id for each, ran in zip(problems, good, strict=True) if ran.verdict != "passed"
    ] == []
    assert bad.verdict == "failed"


@pytest.fixture
def bundle(demo_gguf: Path, tmp_path: Path) -> str:
    """The demo model as a bundle's folder."""
    root = tmp_path / "bundle"
    link_or_copy(demo_gguf, root / "model.gguf")
    serve = Serve(server="xllamacpp", context=512, parallel=4)
    draft = Manifest(
        name="demo", digest="", engine="llama.cpp", weights="model.gguf", size_bytes=0,
        bits_per_weight=5.0, files=list_files(root), recipe={},
        serve=serve.model_dump(mode="json"), source={},
        quantization={"scheme": "q4_1", "kv_bytes_per_token": 23040}, quality={}, parity={},
        tools={}, created_by="test",
    )  # fmt: skip
    (root / SBOM).write_text(sbom.render(draft, ()), encoding="utf-8")
    files = list_files(root)
    size = sum(entry.size for entry in files)
    manifest = draft.model_copy(update={"files": files, "size_bytes": size}).sealed()
    (root / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    return str(root)


def test_a_served_model_answers_the_same_twice_and_is_stopped(bundle: str, own_home: Home) -> None:
    """Two servers one after the other: the greedy answers, hence the scores, are the same."""
    outcome = run_tasks(bundle, bundle, ("humaneval", "instructions"), 3, own_home, SILENT)
    code, chat = outcome.asked.results
    assert outcome.baseline is not None
    for first, second in zip(outcome.asked.results, outcome.baseline.results, strict=True):
        assert first.items == second.items
    assert (code.count, chat.count) == (3, 3)
    assert {item.detail.partition(":")[0] for item in code.items} <= {"passed", "failed"}
    assert chat.value == 1.0  # the capital of France, 2 + 2, a rainbow
    assert outcome.recoveries[1].value == 1.0 and outcome.recoveries[1].note
    stored = json.loads((outcome.folder / "tasks.json").read_text(encoding="utf-8"))
    assert stored["tasks"][1]["value"] == 1.0 and stored["model"]["scheme"] == "q4_1"
    assert list(own_home.servers.iterdir()) == []


TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: capitals.jsonl}}}}
test_split: test
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_target: "{{{{capital}}}}"
"""
GENERATES = """\
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
filter_list:
  - name: first-word
    filter:
      - {function: regex, regex_pattern: "([A-Z][a-z]+)"}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSES = """\
output_type: multiple_choice
doc_to_choice: ["Paris", "Rome", "Tokyo"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_the_real_harness_asks_a_served_model(bundle: str, own_home: Home, tmp_path: Path) -> None:
    answers = {"France": "Paris", "Italy": "Rome", "Japan": "Paris"}  # the last one is wrong
    lines = [json.dumps({"country": c, "capital": answer}) for c, answer in answers.items()]
    (tmp_path / "capitals.jsonl").write_text("\n".join(lines), encoding="utf-8")
    generates, chooses = tmp_path / "capitals.yaml", tmp_path / "choice.yaml"
    generates.write_text(TASK.format(name="capitals") + GENERATES, encoding="utf-8")
    chooses.write_text(TASK.format(name="choice") + CHOOSES, encoding="utf-8")
    outcome = run_tasks(bundle, None, [f"lm-eval:{generates}"], None, own_home, SILENT)
    (found,) = outcome.asked.results
    assert (found.metric, found.count) == ("exact_match", 3)
    assert [item.score for item in found.items] == [1.0, 1.0, 0.0]
    with pytest.raises(StageError, match=r"llama\.cpp's has not"):
        run_tasks(bundle, None, [f"lm-eval:{chooses}"], None, own_home, SILENT)
    assert serving.status(own_home) == []
