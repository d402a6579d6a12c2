"""Hugging Face repositories: pin a revision, download it resumably, verify every file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deployer.artifacts import file_digest
from deployer.checkpoint import require_safetensors, wanted_files
from deployer.errors import SourceError
from deployer.progress import Step
from deployer.store import DISK_TROUBLE, link_or_copy, require_space

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Result = TypeVar("Result")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
PAUSES = (2.0, 4.0, 8.0)
"""Seconds between attempts when a download breaks off."""


def resolve_revision(repository: str, revision: str | None) -> str:
    """The 40-digit commit of a revision; asks the hub unless it is one already."""
    if revision and _COMMIT.match(revision):
        return revision
    commit = _info(repository, revision).sha
    if not commit:
        raise SourceError(f"the hub names no commit for {repository}")
    return str(commit)


def download(repository: str, commit: str, target: Path, cache: Path, step: Step) -> None:
    """Download a checkpoint's files to `target`; what an earlier try got is not fetched again.

    Only safetensors, JSON, text and tokenizer files are fetched. Files the hub keeps a SHA-256
    of are compared with it.
    """
    siblings = _info(repository, commit).siblings or []
    sizes = {file.rfilename: int(file.size or 0) for file in siblings}
    hashes = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs}
    require_safetensors(sizes, f"{repository} at {commit[:12]}")
    names = wanted_files(sizes)
    total = sum(sizes[name] for name in names)
    require_space(cache, total, f"downloading {repository}")
    done = 0
    for name in names:
        step.update(done=done, total=total, note=f"{name} ({sizes[name] / 1e6:,.0f} MB)")
        path = _download_file(repository, commit, name, cache, _bar(step, done, total))
        if name in hashes and file_digest(path.resolve()) != hashes[name]:
            path.resolve().unlink()
            raise SourceError(
                f"{name} of {repository} does not match the hub's SHA-256",
                "It was deleted; run the build again to fetch it anew.",
            )
        link_or_copy(path.resolve(), target / name)
        done += sizes[name]
    step.update(done=total, total=total, note="verified")


def _info(repository: str, revision: str | None) -> ModelInfo:
    from huggingface_hub import HfApi

    def ask() -> ModelInfo:
        return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)

    return _persist(repository, revision, ask, ())


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


def _download_file(repository: str, commit: str, name: str, cache: Path, bar: type) -> Path:
    """One file, resumed over a few attempts when the connection breaks."""
    from huggingface_hub import hf_hub_download

    def fetch() -> Path:
        return Path(
            hf_hub_download(repository, name, revision=commit, cache_dir=cache, tqdm_class=bar)
        )

    return _persist(repository, commit, fetch, PAUSES)


class _UnreachableError(SourceError):
    """The hub did not answer; another attempt may succeed."""


def _persist(
    repository: str, revision: str | None, call: Callable[[], Result], pauses: Sequence[float]
) -> Result:
    """Call the hub; while it cannot be reached, again after each pause (seconds)."""
    for pause in (*pauses, None):
        try:
            return _translated(repository, revision, call)
        except _UnreachableError as error:
            if pause is None:
                raise SourceError(error.message, error.hint) from error.__cause__
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def _translated(repository: str, revision: str | None, call: Callable[[], Result]) -> Result:
    """Call the hub; its exceptions become SourceErrors of one sentence and a hint."""
    from huggingface_hub import errors

    at = f"{repository} at {revision}" if revision else repository
    try:
        return call()
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{repository} is gated: its owner must grant access",
            "Accept its terms on its page, then set HF_TOKEN to a token of that account.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model repository {repository}, or it is private",
            "Check the spelling; for a private one set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{repository} has no revision {revision}", "Check source.revision."
        ) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{at}: {error}", "Check source.huggingface.") from error
    except errors.DisabledRepoError as error:
        raise SourceError(f"the hub has disabled {repository}", "Use another model.") from error
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


def _unreachable(at: str, error: Exception) -> _UnreachableError:
    return _UnreachableError(
        f"the model hub could not be reached for {at} ({_short(error)})",
        "Check the network and HF_ENDPOINT, or use source.path, source.gguf or "
        "source.package. What was downloaded is kept, and the next build resumes.",
    )


def _short(error: Any) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
