"""The model hub: pin a revision, download models and data sets resumably, verify every file."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deployer.artifacts import file_digest
from deployer.checkpoint import MAX_JSON, require_safetensors, wanted_files
from deployer.errors import SourceError
from deployer.progress import Step
from deployer.store import DISK_TROUBLE, link_or_copy, require_space

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

Result = TypeVar("Result")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
PAUSES = (2.0, 4.0, 8.0)
"""Seconds between attempts when a download breaks off."""
DATASET_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
"""Files of a data set that hold data only. Scripts and pickles could run code."""
CONFIG_TIMEOUT = 10.0
"""Seconds that a plan waits for the hub's answer."""
_SHOWN_FILES = 5


DatasetSection = Literal["calibration", "quality"]
"""The recipe's section that names a data set; errors speak of its fields."""
_OTHERWISE: dict[DatasetSection, str] = {
    "calibration": "use calibration.text or calibration.chats",
    "quality": "use quality.text",
}


@dataclass(frozen=True)
class _Repository:
    """A repository at a revision, and the words in which errors speak of it."""

    name: str
    revision: str | None
    kind: Literal["model", "dataset"]
    what: str
    field: str
    revision_field: str
    otherwise: str

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name


def _model(name: str, revision: str | None) -> _Repository:
    return _Repository(
        name,
        revision,
        "model",
        "model repository",
        "source.huggingface",
        "source.revision",
        "use source.path, source.gguf or source.package",
    )


def _dataset(name: str, revision: str | None, section: DatasetSection) -> _Repository:
    return _Repository(
        name,
        revision,
        "dataset",
        "data set",
        f"{section}.dataset",
        f"{section}.revision",
        _OTHERWISE[section],
    )


def resolve_revision(repository: str, revision: str | None) -> str:
    """The 40-digit commit of a revision; asks the hub unless it is one already."""
    return _resolved(_model(repository, revision))


def resolve_dataset_revision(dataset: str, revision: str | None, section: DatasetSection) -> str:
    """The same for a data set."""
    return _resolved(_dataset(dataset, revision, section))


def fetch_config(repository: str, commit: str) -> dict[str, Any] | None:
    """The repository's config.json; None when the hub cannot be reached within seconds.

    Raises SourceError where the hub refuses, or where there is no such file or no JSON object.
    """
    try:
        content = _small_file(_model(repository, commit), "config.json")
    except _UnreachableError:
        return None
    try:
        config = json.loads(content) if len(content) <= MAX_JSON else None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"config.json of {repository} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise SourceError(
            f"config.json of {repository} is no JSON object, or larger than {MAX_JSON >> 20} MiB",
            "Check the repository's name and revision.",
        )
    return config


def download(repository: str, commit: str, target: Path, cache: Path, step: Step) -> None:
    """Download a checkpoint's files to `target`; what an earlier try got is not fetched again.

    Only safetensors, JSON, text and tokenizer files are fetched. Files the hub keeps a SHA-256
    of are compared with it.
    """
    at = _model(repository, commit)
    siblings = _info(at).siblings or []
    sizes = {file.rfilename: int(file.size or 0) for file in siblings}
    hashes = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs}
    require_safetensors(sizes, f"{repository} at {commit[:12]}")
    names = wanted_files(sizes)
    total = sum(sizes[name] for name in names)
    require_space(cache, total, f"downloading {repository}")
    done = 0
    for name in names:
        step.update(done=done, total=total, note=f"{name} ({sizes[name] / 1e6:,.0f} MB)")
        path = _download_file(at, name, cache, _bar(step, done, total))
        _require_hash(path, name, hashes, repository)
        link_or_copy(path, target / name)
        done += sizes[name]
    step.update(done=total, total=total, note="verified")


def download_dataset_file(
    pinned: Mapping[str, str], section: DatasetSection, target: Path, cache: Path, step: Step
) -> None:
    """Download one file of a data set to the path `target`; verified as above.

    `pinned` are dataset, revision (a commit) and file. Raises SourceError where there is no such
    file, or its kind could run code.
    """
    dataset, file = pinned["dataset"], pinned["file"]
    at = _dataset(dataset, pinned["revision"], section)
    if PurePosixPath(file).suffix.lower() not in DATASET_SUFFIXES:
        raise SourceError(
            f"{file} of {dataset} is no {', '.join(DATASET_SUFFIXES)} file",
            f"Name a file of that kind in {section}.file; scripts and pickles are not read.",
        )
    siblings = {entry.rfilename: entry for entry in _info(at).siblings or []}
    if file not in siblings:
        fit = sorted(n for n in siblings if PurePosixPath(n).suffix.lower() in DATASET_SUFFIXES)
        listed = ", ".join(fit[:_SHOWN_FILES]) + (", …" if len(fit) > _SHOWN_FILES else "")
        raise SourceError(
            f"{at} has no file {file}",
            f"It has {listed or 'no file that could be used'}; set {section}.file.",
        )
    size = int(siblings[file].size or 0)
    require_space(cache, size, f"downloading {file} of {dataset}")
    path = _download_file(at, file, cache, _bar(step, 0, size))
    lfs = siblings[file].lfs
    _require_hash(path, file, {file: lfs.sha256} if lfs else {}, dataset)
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(path, target)
    step.update(done=size, total=size, note="verified")


def _require_hash(path: Path, name: str, hashes: dict[str, str], repository: str) -> None:
    if name in hashes and file_digest(path) != hashes[name]:
        path.unlink()
        raise SourceError(
            f"{name} of {repository} does not match the hub's SHA-256",
            "It was deleted; run the build again to fetch it anew.",
        )


def _resolved(at: _Repository) -> str:
    if at.revision and _COMMIT.match(at.revision):
        return at.revision
    commit = _info(at).sha
    if not commit:
        raise SourceError(f"the hub names no commit for {at.name}")
    return str(commit)


def _info(at: _Repository) -> ModelInfo | DatasetInfo:
    from huggingface_hub import HfApi

    def ask() -> ModelInfo | DatasetInfo:
        api = HfApi()
        look = api.dataset_info if at.kind == "dataset" else api.model_info
        return look(at.name, revision=at.revision, files_metadata=True, timeout=30)

    return _persist(at, ask, ())


def _small_file(at: _Repository, name: str) -> bytes:
    """The first MAX_JSON + 1 bytes of a file in one plain request.

    The client's own download asks five times more, over half a minute, where no hub answers.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    def ask() -> bytes:
        url = hf_hub_url(at.name, name, repo_type=at.kind, revision=at.revision)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{MAX_JSON}"}
        response = get_session().get(url, headers=headers, timeout=CONFIG_TIMEOUT)
        hf_raise_for_status(response)
        return bytes(response.content)

    return _translated(at, ask)


def _bar(step: Step, before: int, total: int) -> type:
    """A stand-in for tqdm's bar that counts one file's bytes on top of `before`."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.bytes = initial

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def update(self, count: float | None = 1) -> None:
            self.bytes += int(count or 0)
            step.update(done=before + self.bytes, total=total)

    return Bar


def _download_file(at: _Repository, name: str, cache: Path, bar: type) -> Path:
    """One file, where it really lies in the cache; resumed when the connection breaks."""
    from huggingface_hub import hf_hub_download

    def fetch() -> Path:
        path = hf_hub_download(
            at.name, name, repo_type=at.kind, revision=at.revision, cache_dir=cache, tqdm_class=bar
        )
        return Path(path).resolve()

    return _persist(at, fetch, PAUSES)


class _UnreachableError(SourceError):
    """The hub did not answer; another attempt may succeed."""


def _persist(at: _Repository, call: Callable[[], Result], pauses: Sequence[float]) -> Result:
    """Call the hub; while it cannot be reached, again after each pause (seconds)."""
    for pause in (*pauses, None):
        try:
            return _translated(at, call)
        except _UnreachableError as error:
            if pause is None:
                raise SourceError(error.message, error.hint) from error.__cause__
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def _translated(at: _Repository, call: Callable[[], Result]) -> Result:
    """Call the hub; its exceptions become SourceErrors of one sentence and a hint."""
    from huggingface_hub import errors

    try:
        return call()
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{at.name} is gated: its owner must grant access",
            "Accept its terms on its page, then set HF_TOKEN to a token of that account.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no {at.what} {at.name}, or it is private",
            "Check the spelling; for a private one set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{at.name} has no revision {at.revision}", f"Check {at.revision_field}."
        ) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{at}: {error}", f"Check {at.field}.") from error
    except errors.DisabledRepoError as error:
        raise SourceError(f"the hub has disabled {at.name}", "Use another one.") from error
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise SourceError(f"a file is missing from {at}: {_short(error)}") from error
        raise _unreachable(at, error) from error  # "not in the cache, and no connection"
    except (OSError, RuntimeError, _transport_error()) as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise SourceError(
                f"the hub refuses access to {at} ({_short(error)})",
                "Set HF_TOKEN to a valid token of an account that may read it.",
            ) from error
        raise _unreachable(at, error) from error


def _transport_error() -> type[Exception]:
    """What a broken connection raises: of requests, httpx or httpx2, as the release has it."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    return base


def _unreachable(at: _Repository, error: Exception) -> _UnreachableError:
    return _UnreachableError(
        f"the model hub could not be reached for {at} ({_short(error)})",
        f"Check the network and HF_ENDPOINT, or {at.otherwise}. What was downloaded is kept, and "
        "the next build resumes.",
    )


def _short(error: Any) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
