"""Hugging Face repositories: every way the hub refuses, and downloads that break off.

The exceptions are huggingface_hub's own; where a hub is needed it is the fake one of fake_hub.py
with the real client.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fake_hub import ABSENT, COMMIT, DATASET, GATED, REPOSITORY, FakeHub, serve
from huggingface_hub import constants, errors
from huggingface_hub.hf_api import ModelInfo
from model_files import CONFIG, safetensors

from deployer.errors import SourceError, StoreError
from deployer.progress import Silent, Step
from deployer.stages import hub
from deployer.store import Store

WEIGHTS = safetensors(data=bytes(range(22)))
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": WEIGHTS,
}


class Recorder:
    """A step that remembers what it was told."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.total: float | None = None

    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        if done is not None:
            self.done.append(done)
        self.total = total or self.total


@pytest.fixture
def step() -> Iterator[Step]:
    with Silent().step("download") as silent:
        yield silent


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none is really waited for."""
    made: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", made.append)
    return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serve(FakeHub(dict(FILES))) as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield running


def download(target: Path, cache: Path, step: Any) -> None:
    hub.download(REPOSITORY, COMMIT, target, cache, step)


# Every refusal is one sentence and a hint


def response(status: int) -> Any:
    """A response of the HTTP library that huggingface_hub was built on."""
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "http://127.0.0.1/api"))


def transport_error() -> Exception:
    return hub._transport_error()("connection refused")


REFUSALS: list[tuple[Callable[[], Exception], str, str]] = [
    (lambda: errors.GatedRepoError("x", response=response(403)), "is gated", "HF_TOKEN"),
    (lambda: errors.RepositoryNotFoundError("x", response=response(401)), "no model repo", "HF_"),
    (lambda: errors.RevisionNotFoundError("x", response=response(404)), "no revision v9", "sourc"),
    (lambda: errors.DisabledRepoError("x", response=response(403)), "disabled", "another"),
    (lambda: errors.RemoteEntryNotFoundError("x", response=response(404)), "file is missing", ""),
    (lambda: errors.LocalEntryNotFoundError("x"), "could not be reached", "network"),
    (lambda: errors.OfflineModeIsEnabled("offline"), "could not be reached", "network"),
    (lambda: errors.HfHubHTTPError("502 Bad Gateway", response=response(502)), "502 Bad", "netw"),
    (lambda: errors.HfHubHTTPError("403 x", response=response(403)), "refuses access", "HF_TOK"),
    (lambda: errors.HFValidationError("bad name"), "bad name", "source.huggingface"),
    (lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused", "network"),
    (lambda: TimeoutError("slow"), "could not be reached", "HF_ENDPOINT"),
    (lambda: RuntimeError("Xet"), "could not be reached", "resumes"),
    (transport_error, "connection refused", "network"),
]


@pytest.mark.parametrize(("make", "words", "hint"), REFUSALS, ids=lambda value: str(value)[:20])
def test_every_refusal_is_explained(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], words: str, hint: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise make()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(SourceError) as caught:
        hub.resolve_revision(REPOSITORY, "v9")
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
    assert REPOSITORY in caught.value.message
    assert caught.value.as_json()["type"] == "SourceError"
    assert caught.value.__cause__ is not None


def test_a_hub_without_a_commit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: ModelInfo(id=REPOSITORY)
    )
    with pytest.raises(SourceError, match="names no commit"):
        hub.resolve_revision(REPOSITORY, None)


def test_a_commit_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert hub.resolve_revision(REPOSITORY, COMMIT) == COMMIT


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, fake: FakeHub) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="could not be reached"):
        hub.resolve_revision(REPOSITORY, None)


# The real client and the fake hub


def test_an_unpinned_revision_is_resolved(fake: FakeHub) -> None:
    assert hub.resolve_revision(REPOSITORY, None) == COMMIT
    assert hub.resolve_revision(REPOSITORY, "v1") == COMMIT


@pytest.mark.parametrize(
    ("refusal", "words"),
    [(GATED, "is gated"), (ABSENT, "no model repository"), ((401, ""), "refuses access")],
)
def test_the_hub_refuses(fake: FakeHub, refusal: tuple[int, str], words: str) -> None:
    fake.refusal = refusal
    with pytest.raises(SourceError, match=words):
        hub.resolve_revision(REPOSITORY, None)


def test_a_revision_there_is_not(fake: FakeHub) -> None:
    with pytest.raises(SourceError, match="no revision v2"):
        hub.resolve_revision(REPOSITORY, "v2")


def test_only_wanted_files_are_downloaded(fake: FakeHub, tmp_path: Path) -> None:
    step = Recorder()
    download(tmp_path / "model", tmp_path / "cache", step)
    assert {path.name for path in (tmp_path / "model").rglob("*")} == {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert not fake.served("modeling_evil.py")
    assert not fake.served("pytorch_model.bin")
    total = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert step.total == step.done[-1] == total
    assert step.done == sorted(step.done)


def test_a_second_download_fetches_nothing(fake: FakeHub, tmp_path: Path, step: Step) -> None:
    download(tmp_path / "one", tmp_path / "cache", step)
    fake.requests.clear()
    download(tmp_path / "two", tmp_path / "cache", step)
    assert not fake.served("model.safetensors")
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_download_cut_short_is_resumed(
    fake: FakeHub, tmp_path: Path, step: Step, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 5)
    fake.cuts["model.safetensors"] = 10
    download(tmp_path / "model", tmp_path / "cache", step)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.served("model.safetensors")[-1] == "bytes=10-"


def test_a_hub_that_stays_away_is_asked_four_times(
    fake: FakeHub, tmp_path: Path, step: Step, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(SourceError, match="reset by peer") as caught:
        download(tmp_path / "model", tmp_path / "cache", step)
    assert len(asked) == 4
    assert pauses == list(hub.PAUSES)
    assert "resumes" in caught.value.hint


def test_a_full_disk_is_not_taken_for_a_broken_network(
    fake: FakeHub, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)

    def build(folder: Path) -> dict[str, Any]:
        download(folder, tmp_path / "cache", Recorder())
        return {}

    with pytest.raises(StoreError, match="No space left"):
        Store(tmp_path / "store").get_or_build("fetch", "ab" * 32, build, Silent())
    assert pauses == []


def test_too_little_space_is_told_before_the_download(
    fake: FakeHub, tmp_path: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, needed: int, purpose: str) -> None:
        raise StoreError(f"{purpose} needs {needed}")

    monkeypatch.setattr(hub, "require_space", refuse)
    with pytest.raises(StoreError, match=f"downloading {REPOSITORY} needs"):
        download(tmp_path / "model", tmp_path / "cache", step)
    assert not fake.served("model.safetensors")


def test_a_wrong_hash_is_refused_and_the_file_deleted(
    fake: FakeHub, tmp_path: Path, step: Step
) -> None:
    fake.lies["model.safetensors"] = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(SourceError, match="does not match the hub's SHA-256") as caught:
        download(tmp_path / "model", tmp_path / "cache", step)
    assert "deleted" in caught.value.hint
    assert not (tmp_path / "model" / "model.safetensors").exists()
    blobs = [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()]
    assert WEIGHTS not in [path.read_bytes() for path in blobs]
    fake.lies.clear()
    download(tmp_path / "again", tmp_path / "cache", step)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_pickle_only_repository_is_refused_before_any_download(
    fake: FakeHub, tmp_path: Path, step: Step
) -> None:
    fake.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(SourceError, match=r"pytorch_model\.bin, a format that can run code"):
        download(tmp_path / "model", tmp_path / "cache", step)
    assert not any("/resolve/" in path for _, path, _ in fake.requests)


def test_a_repository_without_weights_is_refused(fake: FakeHub, tmp_path: Path, step: Step) -> None:
    fake.files = {"README.md": b""}
    with pytest.raises(SourceError, match=r"holds no \*\.safetensors"):
        download(tmp_path / "model", tmp_path / "cache", step)


# config.json alone, before anything else is fetched


def test_the_config_is_fetched_alone(fake: FakeHub) -> None:
    assert hub.fetch_config(REPOSITORY, COMMIT) == CONFIG
    assert {path.rpartition("/")[2] for _, path, _ in fake.requests} == {"config.json"}


def test_no_hub_means_no_config_and_no_pauses(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    assert hub.fetch_config(REPOSITORY, COMMIT) is None
    assert pauses == []


def test_a_hub_that_fails_means_no_config(fake: FakeHub, pauses: list[float]) -> None:
    fake.refusal = (500, "")
    assert hub.fetch_config(REPOSITORY, COMMIT) is None


@pytest.mark.parametrize(
    ("refusal", "words"),
    [(GATED, "is gated"), (ABSENT, "no model repository"), ((401, ""), "refuses access")],
)
def test_a_refused_config_is_an_error(fake: FakeHub, refusal: tuple[int, str], words: str) -> None:
    fake.refusal = refusal
    with pytest.raises(SourceError, match=words):
        hub.fetch_config(REPOSITORY, COMMIT)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "file is missing"), (b"{", "not valid JSON"), (b"[]", "no JSON object")],
)
def test_a_config_that_cannot_be_read(fake: FakeHub, content: bytes | None, words: str) -> None:
    fake.files = {} if content is None else {"config.json": content}
    with pytest.raises(SourceError, match=words):
        hub.fetch_config(REPOSITORY, COMMIT)


def test_a_config_too_large_to_be_one(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_JSON", 10)
    with pytest.raises(SourceError, match="larger than"):
        hub.fetch_config(REPOSITORY, COMMIT)
    assert fake.served("config.json") == ["bytes=0-10"]


# A file of a data set

TEXTS = {
    "data/train.jsonl": b'{"text": "one"}\n',
    "data/train.parquet": b"PAR1 columns PAR1",
    "notes.TXT": b"plain",
    "load.py": b"raise SystemExit",
    "samples.pkl": b"pickle",
    "archive.zip": b"PK",
}


def pinned(file: str) -> dict[str, str]:
    return {"dataset": DATASET, "revision": COMMIT, "file": file}


@pytest.fixture
def texts(fake: FakeHub) -> FakeHub:
    fake.files = dict(TEXTS)
    return fake


@pytest.mark.parametrize("name", ["data/train.jsonl", "data/train.parquet", "notes.TXT"])
def test_a_file_of_a_data_set_is_downloaded(
    texts: FakeHub, tmp_path: Path, step: Step, name: str
) -> None:
    target = tmp_path / "set" / "calibration"
    assert hub.resolve_dataset_revision(DATASET, "v1", "quality") == COMMIT
    hub.download_dataset_file(pinned(name), "quality", target, tmp_path / "cache", step)
    assert target.read_bytes() == TEXTS[name]
    assert target.is_file() and not target.is_symlink()
    others = [other for other in TEXTS if other != name]
    assert not any(texts.served(other, f"datasets/{DATASET}") for other in others)


def test_a_commit_of_a_data_set_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    assert hub.resolve_dataset_revision(DATASET, COMMIT, "quality") == COMMIT


@pytest.mark.parametrize("section", ["calibration", "quality"])
@pytest.mark.parametrize("name", ["load.py", "samples.pkl", "archive.zip", "train"])
def test_files_that_could_run_code_are_refused_before_any_request(
    texts: FakeHub, tmp_path: Path, step: Step, name: str, section: Any
) -> None:
    with pytest.raises(
        SourceError, match=r"is no \.txt, \.jsonl, \.json, \.parquet file"
    ) as caught:
        fetch = hub.download_dataset_file
        fetch(pinned(name), section, tmp_path / "x", tmp_path / "cache", step)
    assert f"{section}.file" in caught.value.hint
    assert texts.requests == []


@pytest.mark.parametrize("name", ["train.jsonl", "../data/train.jsonl", "/etc/passwd.txt"])
def test_a_file_there_is_not_names_those_there_are(
    texts: FakeHub, tmp_path: Path, step: Step, name: str
) -> None:
    with pytest.raises(SourceError, match="has no file") as caught:
        fetch = hub.download_dataset_file
        fetch(pinned(name), "quality", tmp_path / "x", tmp_path / "cache", step)
    assert "It has data/train.jsonl, data/train.parquet, notes.TXT" in caught.value.hint


def test_a_data_set_file_with_a_wrong_hash_is_deleted(
    texts: FakeHub, tmp_path: Path, step: Step
) -> None:
    texts.lies["data/train.parquet"] = hashlib.sha256(b"other").hexdigest()
    target, cache = tmp_path / "x", tmp_path / "cache"
    with pytest.raises(SourceError, match="does not match the hub's SHA-256"):
        hub.download_dataset_file(pinned("data/train.parquet"), "quality", target, cache, step)
    assert not target.exists()


@pytest.mark.parametrize(
    ("refusal", "words", "hint"),
    [
        (GATED, "some/texts is gated", "HF_TOKEN"),
        (ABSENT, "no data set some/texts", "HF_TOKEN"),
        ((404, "RevisionNotFound"), "no revision v1", "{section}.revision"),
        ((502, ""), "could not be reached", "{section}.text"),
    ],
)
@pytest.mark.parametrize("section", ["calibration", "quality"])
def test_errors_speak_of_the_data_set_and_its_section(
    texts: FakeHub, refusal: tuple[int, str], words: str, hint: str, section: Any
) -> None:
    texts.refusal = refusal
    with pytest.raises(SourceError, match=words) as caught:
        hub.resolve_dataset_revision(DATASET, "v1", section)
    assert hint.format(section=section) in caught.value.hint
    assert "source." not in caught.value.hint
