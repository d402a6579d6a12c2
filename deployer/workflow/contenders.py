"""One format of a comparison: its bundle, what its trials measured, and the row that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployer import tasks
from deployer.artifacts import Bundle
from deployer.comparison import Row, Serving, Size, Status, TaskScore, estimate, known
from deployer.errors import DeployerError, PlanError, QualityGateError, UsageError
from deployer.home import Home
from deployer.metering import Reading
from deployer.progress import Progress
from deployer.recipe import Recipe, read_recipe
from deployer.recipe.matrix import Format, Matrix
from deployer.tasks import TaskResult
from deployer.trials import Run, level
from deployer.workflow.building import build

NAME_LENGTH = 64
SIXTEEN_BITS = ("f16", "bf16")


@dataclass
class Contender:
    """A format under way. `failure` is its row once it cannot be measured any more.

    The lists have a value a trial: seconds to the first token, peak memory in bytes, the load tests
    with one user and with all, and what the machine did during the second.
    """

    name: str
    path: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    bundle: Bundle | None = None
    failure: Row | None = None
    server: dict[str, Any] = field(default_factory=dict)
    load_seconds: list[float] = field(default_factory=list)
    peaks: list[int | None] = field(default_factory=list)
    single: list[Run] = field(default_factory=list)
    loaded: list[Run] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    tasks: tuple[TaskResult, ...] = ()

    @classmethod
    def of(cls, matrix: Matrix, chosen: Format) -> Contender:
        """Read a format's recipe; its bundle is named after the format, to be found again."""
        path = matrix.recipe_of(chosen)
        name = f"{matrix.name}-{chosen.name}"[:NAME_LENGTH]
        overrides = (f"name={name}", *matrix.overrides_of(chosen))
        return cls(chosen.name, path, overrides, read_recipe(path, overrides))

    def build(self, home: Home, progress: Progress) -> None:
        """Build the bundle, or note why there is none."""
        try:
            self.bundle = build(self.path, self.overrides, home, progress).bundle
        except QualityGateError as error:
            self.drop("refused", error, home, progress, quality=error.measured)
        except (PlanError, UsageError) as error:
            self.drop("unavailable", error, home, progress)
        except DeployerError as error:
            self.drop("failed", error, home, progress)

    def drop(
        self, status: Status, error: DeployerError, home: Home, progress: Progress, **found: Any
    ) -> None:
        """Measure it no further, for a reason; what was measured until then is not shown.

        The document goes to other machines: of this one's folders it says $DEPLOYER_HOME.
        """
        reason, hint = (
            text.replace(str(home.root), "$DEPLOYER_HOME") for text in (error.message, error.hint)
        )
        self.failure = Row(
            **self._identity(),
            status=status,
            reason=reason,
            hint=hint or None,
            **found,
        )
        progress.warn(f"{self.name} is {status}: {error.message}")

    def _identity(self) -> dict[str, str]:
        wanted = self.recipe.quantization
        scheme = "none" if wanted.method == "none" else wanted.label
        engine = self.recipe.target.engine
        return {"name": self.name, "engine": engine, "method": wanted.method, "scheme": scheme}

    @property
    def sixteen_bit(self) -> bool:
        wanted = self.recipe.quantization
        return wanted.method == "none" or wanted.scheme in SIXTEEN_BITS

    def row(self, matrix: Matrix, others: Sequence[Contender]) -> Row:
        """What came of it; task scores are divided by those of a 16-bit format of `others`."""
        if self.failure or self.bundle is None:
            assert self.failure
            return self.failure
        manifest = self.bundle.manifest
        return Row(
            **self._identity(),
            status="measured",
            bundle=manifest.name,
            digest=manifest.digest,
            size=_size(self.bundle),
            quality=manifest.quality,
            tasks=self._scores(others),
            serving=self._serving(matrix),
            tools=manifest.tools,
        )

    def _serving(self, matrix: Matrix) -> Serving:
        spent = map(_joules_a_token, self.readings, self.loaded)
        answers = self.loaded[0][0].answers
        return Serving(
            server=str(self.server["server"]),
            version=str(self.server["version"]),
            context=matrix.measure.context,
            parallel=matrix.measure.users,
            load_seconds=known(self.load_seconds),
            peak_rss_bytes=estimate(self.peaks),
            peak_gpu_bytes=estimate([reading.gpu_bytes for reading in self.readings]),
            single=level(1, self.single),
            loaded=level(matrix.measure.users, self.loaded),
            energy_j_per_token=estimate(list(spent)),
            energy_source=self.readings[0].energy_source,
            sample=answers[0].text if answers else "",
        )

    def _scores(self, others: Sequence[Contender]) -> tuple[TaskScore, ...]:
        before = self._baseline(others)
        return tuple(
            _score(result, before.tasks[number] if before else None)
            for number, result in enumerate(self.tasks)
        )

    def _baseline(self, others: Sequence[Contender]) -> Contender | None:
        """A 16-bit format that was asked too: of the same engine where there is one."""
        asked = [each for each in others if each.sixteen_bit and each.tasks and each is not self]
        same = [each for each in asked if each.recipe.target.engine == self.recipe.target.engine]
        return None if self.sixteen_bit else next(iter([*same, *asked]), None)


def _size(bundle: Bundle) -> Size:
    """The weights as they lie in the bundle, or in memory where they are quantized on the way."""
    manifest = bundle.manifest
    bits = manifest.bits_per_weight
    weights = manifest.weights_bytes
    if manifest.quantization.get("load"):
        weights = int(manifest.quality["memory"]["weights_bytes"])
    return Size(
        weights_bytes=weights,
        bundle_bytes=manifest.size_bytes,
        parameters=round(8 * weights / bits),
        bits_per_weight=bits,
        ratio_to_fp32=round(32 / bits, 4),
        ratio_to_fp16=round(16 / bits, 4),
    )


def _score(result: TaskResult, before: TaskResult | None) -> TaskScore:
    kept = tasks.recovery(result, before) if before else None
    return TaskScore(
        task=result.name,
        metric=result.metric,
        items=result.count,
        value=result.value,
        low=result.low,
        high=result.high,
        recovery=kept.value if kept else None,
        recovery_low=kept.low if kept else None,
        recovery_high=kept.high if kept else None,
    )


def _joules_a_token(reading: Reading, run: Run) -> float | None:
    """Energy of a load test by all its output tokens, warm-up included."""
    tokens = sum(sample.output_tokens or 0 for sample in run[1])
    return reading.energy_j / tokens if reading.energy_j is not None and tokens else None
