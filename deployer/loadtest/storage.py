"""The files of one load test: written in a hidden folder that is renamed when all is there."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployer.errors import LoadTestError
from deployer.metrics import Sample, connect, e2e, e2e_from_schedule, queue, tpot, ttfo, ttft
from deployer.results import CSV, REQUESTS, RESULT, LoadTestResult

Page = Callable[[LoadTestResult, Sequence[Sample]], str]
"""Draws a result; `deployer.report.PAGES` names the ones that are stored beside it."""

_FIELDS = (
    "id", "phase", "due", "sent", "first", "last", "closed", "status", "error", "finish_reason",
    "prompt_tokens", "cached_tokens", "output_tokens", "token_source", "n_first", "stage", "trial",
    "turn", "opened", "max_tokens",
)  # fmt: skip
_FIGURES: dict[str, Callable[[Sample], float | None]] = {
    "ttft_ms": ttft, "ttfo_ms": ttfo, "tpot_ms": tpot, "e2e_ms": e2e,
    "e2e_from_schedule_ms": e2e_from_schedule, "queue_ms": queue, "connect_ms": connect,
}  # fmt: skip


@contextmanager
def folder_for(identity: str, out_dir: Path) -> Iterator[Path]:
    """A folder to work in that becomes `out_dir`/IDENTITY when the context is left well.

    Left by an error it disappears, but for a load test that failed after Locust had started: its
    log is what the error points to.
    """
    partial = out_dir / f".{identity}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise LoadTestError(
            f"cannot write results to {out_dir}: {error.strerror}",
            "Set DEPLOYER_HOME to a folder you may write to.",
        ) from error
    try:
        yield partial
        partial.rename(out_dir / identity)
    except LoadTestError:
        if not any(partial.rglob("*.log")):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write(
    folder: Path, result: LoadTestResult, samples: Sequence[Sample], pages: Mapping[str, Page]
) -> None:
    """Write the document, the raw requests and the pages; the workers' own files go."""
    texts = {
        RESULT: json.dumps(result.as_json(), indent=2, ensure_ascii=False) + "\n",
        REQUESTS: "".join(json.dumps(sample.as_json()) + "\n" for sample in samples),
        CSV: as_csv(samples),
        **{name: page(result, samples) for name, page in pages.items()},
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise LoadTestError(
            f"cannot write {folder}: {error.strerror}", "Is there space left on the disk?"
        ) from error
    for path in (*folder.rglob("samples-*.jsonl"), *folder.rglob("worker-*.json")):
        path.unlink()


def as_csv(samples: Sequence[Sample]) -> str:
    """One row a request: its record without texts and chunk times, and its figures in ms."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIELDS, "chunks", *_FIGURES])
    for sample in samples:
        figures: list[Any] = [figure(sample) for figure in _FIGURES.values()]
        writer.writerow(
            [
                *(getattr(sample, name) for name in _FIELDS),
                len(sample.chunks),
                *(None if value is None else round(value * 1000, 3) for value in figures),
            ]
        )
    return text.getvalue()
