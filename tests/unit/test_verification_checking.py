"""Every way to damage a bundle is found and named; a whole one is checked once and remembered."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import model_files
import pytest
from bundle_files import (
    KEY,
    digests_of,
    put,
    seal,
    signature_document,
    signature_text,
    statement,
    write_bundle,
)
from hypothesis import given
from hypothesis import strategies as some

from deployer import memo as memo_module
from deployer.artifacts import MANIFEST, SBOM, SIGNATURE, Manifest, file_identity
from deployer.memo import DigestMemo
from deployer.progress import Silent
from deployer.verification import Authentic, Check, Checked, Examined
from deployer.verification import digests as digests_module
from deployer.verification.examined import KEPT
from deployer.verification.manifest import MAX_MANIFEST


def check(root: Path, authentic: Authentic | None = None, **options: Any) -> Checked:
    """Check with empty memories and a reader that finds every template good."""
    memory = root.parent / "memory"
    return Check(
        DigestMemo.load(memory / "digests.json"),
        Examined.load(memory / "verified.json"),
        render=options.pop("render", lambda text, must: None),
        authentic=authentic,
        **options,
    )(root)


def problems(root: Path, **options: Any) -> list[str]:
    return [str(fault) for fault in check(root, **options).faults]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def sign(root: Path, change: Callable[[Any], Any] = lambda value: value) -> None:
    """Write a signature of what lies there; `change` is applied to its statement."""
    put(root, SIGNATURE, signature_text(change(statement(digests_of(root)))))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files were written long enough ago to be remembered."""
    monkeypatch.setattr(memo_module, "SETTLED_SECONDS", -1.0)


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm", "transformers"])
def test_a_whole_bundle_is_good(tmp_path: Path, engine: str) -> None:
    found = check(write_bundle(tmp_path / "bundle", engine))
    assert found.faults == ()
    assert found.manifest is not None
    assert found.files == len(found.manifest.files)
    assert found.bytes == found.manifest.size_bytes
    assert found.signature.as_json() == {"state": "none", "key": None}


# Damage


def _change(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        raw = bytearray((root / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (root / name).write_bytes(raw)

    return change


def _edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest's JSON and spell it as deployer does, without a new digest."""

    def edit(root: Path) -> None:
        document = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        change(document)
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (root / MANIFEST).write_text(text, encoding="utf-8")

    return edit


def _swap(root: Path) -> None:
    """Two files of the same length change places."""
    put(root, "a.txt", "one")
    put(root, "b.txt", "two")
    seal(root)
    put(root, "a.txt", "two")
    put(root, "b.txt", "one")


def _spell(text: Callable[[str], str]) -> Callable[[Path], None]:
    def spell(root: Path) -> None:
        path = root / MANIFEST
        path.write_bytes(text(path.read_text(encoding="utf-8")).encode())

    return spell


def _link(root: Path) -> None:
    shutil.move(root / "LICENSE", root.parent / "LICENSE")
    (root / "LICENSE").symlink_to(root.parent / "LICENSE")


def _pipe(root: Path) -> None:
    (root / "config.json").unlink()
    os.mkfifo(root / "config.json")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte of the weights": (_change("model.gguf"), "model.gguf was changed: its SHA-256 is"),
    "a byte of a small file": (_change("LICENSE"), "LICENSE was changed"),
    "a byte of the bill": (_change(SBOM), "bom.cdx.json was changed"),
    "swapped files": (_swap, "a.txt was changed"),
    "a byte more": (lambda root: put(root, "LICENSE", "Made up.\n\n"), "LICENSE has 10 bytes"),
    "cut off": (lambda root: put(root, "model.gguf", b"GGUF"), "model.gguf has 4 bytes"),
    "a missing file": (lambda root: (root / "LICENSE").unlink(), "LICENSE is missing"),
    "no manifest": (lambda root: (root / MANIFEST).unlink(), "manifest.json is missing"),
    "a file too many": (lambda root: put(root, "x.json", "{}"), "x.json is not listed"),
    "a hidden file": (lambda root: put(root, ".x", ""), ".x is not listed"),
    "code": (lambda root: put(root, "modeling.py", ""), "modeling.py is not listed"),
    "a folder": (lambda root: (root / "more").mkdir(), "more is a folder"),
    "a link": (_link, "LICENSE is a symbolic link"),
    "a link too many": (lambda root: (root / "x").symlink_to("/"), "x is a symbolic link"),
    "a pipe": (_pipe, "config.json is no regular file"),
    "the manifest a link": (
        lambda root: (
            shutil.move(root / MANIFEST, root.parent / MANIFEST),
            (root / MANIFEST).symlink_to(root.parent / MANIFEST),
        ),
        "manifest.json is a symbolic link",
    ),
    "no JSON": (_spell(lambda text: text[:100]), "manifest.json is no manifest"),
    "empty": (_spell(lambda text: ""), "manifest.json is no manifest"),
    "no text": (lambda root: put(root, MANIFEST, b"\xff\xfe"), "manifest.json is no manifest"),
    "deep nesting": (
        _spell(lambda text: text.replace('"plan": {', '"plan": {"a": ' + "[" * 200_000, 1)),
        "manifest.json is no manifest",
    ),
    "a huge number": (
        _spell(lambda text: text.replace('"size_bytes": ', '"size_bytes": ' + "9" * 5000, 1)),
        "manifest.json is no manifest",
    ),
    "a large number": (
        _edit_manifest(lambda it: it.update(size_bytes=10**30)),
        "manifest.json",
    ),
    "a name twice": (
        _spell(lambda text: text.replace('"name": ', '"name": "x",\n "name": ', 1)),
        "manifest.json is not spelled as deployer writes it",
    ),
    "a field too many": (
        _spell(lambda text: text.replace('"name": ', '"more": 1,\n "name": ', 1)),
        "manifest.json is not spelled as deployer writes it",
    ),
    "a space more": (_spell(lambda text: text.replace(": ", ":  ", 1)), "is not spelled"),
    "no last newline": (_spell(lambda text: text[:-1]), "is not spelled"),
    "an escape": (_spell(lambda text: text.replace("llama.cpp", "ll\\u0061ma.cpp", 1)), "spelled"),
    "other settings": (
        _edit_manifest(lambda it: it["serve"].update(host="0.0.0.0")),
        "manifest.json does not fit its digest",
    ),
    "other observations": (
        _edit_manifest(lambda it: it["observed"].update(machine="another")),
        "manifest.json does not fit its seal",
    ),
    "an older version": (
        _edit_manifest(lambda it: it.update(manifest_version=1)),
        "manifest.json cannot be used: the bundle was made by an older deployer",
    ),
    "a newer version": (
        _edit_manifest(lambda it: it.update(manifest_version=99)),
        "manifest.json cannot be used: the bundle was made by a newer deployer",
    ),
    "too much": (
        _spell(lambda text: text + " " * MAX_MANIFEST),
        f"manifest.json has over {MAX_MANIFEST} bytes",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found_and_named(root: Path, how: str) -> None:
    damage, words = DAMAGE[how]
    damage(root)
    found = problems(root)
    assert any(words in each for each in found), found


def test_all_problems_are_told_at_once(root: Path) -> None:
    for name in ("LICENSE", "model.gguf"):
        _change(name)(root)
    (root / "config.json").unlink()
    put(root, "x.py", "")
    put(root, SIGNATURE, "{}")
    told = problems(root)
    assert [each.split()[0] for each in told] == [
        "x.py", "config.json", "LICENSE", "model.gguf", SIGNATURE,
    ]  # fmt: skip


# Forged: what a bundle may not hold, sealed as if it were right


def _forge(name: str, content: Any) -> Callable[[Path], None]:
    def forge(root: Path) -> None:
        put(root, name, content)
        seal(root)

    return forge


def _list_more(*names: str) -> Callable[[Path], None]:
    """A sealed manifest that lists names that are not in the folder."""

    def forge(root: Path) -> None:
        manifest = Manifest.parse((root / MANIFEST).read_text(encoding="utf-8"))
        entries = [manifest.files[0].model_copy(update={"path": name, "size": 0}) for name in names]
        made = manifest.model_copy(update={"files": (*manifest.files, *entries)}).sealed()
        (root / MANIFEST).write_text(made.text(), encoding="utf-8")

    return forge


FORGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (_forge("pytorch_model.bin", b"\x80\x04."), "pytorch_model.bin is of a kind that"),
    "code": (_forge("modeling_x.py", "import os"), "modeling_x.py is program code"),
    "an archive": (_forge("x.tar", b""), "x.tar is an archive"),
    "a disguised pickle": (_forge("tokenizer.model", b"\x80\x04."), "is a pickle under another"),
    "auto_map": (
        _forge("config.json", {**model_files.CONFIG, "auto_map": {"AutoModel": "x.Y"}}),
        "config.json asks for code",
    ),
    "damaged weights": (_forge("model.gguf", b"GGUF"), "model.gguf is no usable GGUF file"),
    "deep JSON": (_forge("config.json", "[" * 100_000), "config.json is nested too deeply"),
    "a way out": (_list_more("../../etc/passwd.json"), "../../etc/passwd.json is no plain file"),
    "the root": (_list_more("/etc/passwd"), "/etc/passwd is no plain file name"),
    "another case": (_list_more("license"), "license is listed beside LICENSE"),
    "a listed signature": (_list_more(SIGNATURE), "model.sig is listed in the manifest"),
    "another bill": (
        lambda root: seal(root, bill='{"bomFormat": "CycloneDX"}'),
        "bom.cdx.json is no CycloneDX document about a model",
    ),
    "a bill that is none": (lambda root: seal(root, bill="{"), "bom.cdx.json is not valid JSON"),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_bundle_is_refused(root: Path, how: str) -> None:
    forge, words = FORGED[how]
    forge(root)
    found = problems(root)
    assert any(words in each for each in found), found
    assert not (root.parent / "memory" / "verified.json").exists()


def test_a_template_that_is_refused_is_named(root: Path) -> None:
    found = problems(root, render=lambda text, must: "never ends")
    assert found == [
        "chat_template.jinja has the chat template chat_template.jinja, which never ends",
        "model.gguf has the chat template tokenizer.chat_template, which never ends",
        "tokenizer_config.json has the chat template default, which never ends",
    ]


def test_contents_are_looked_at_in_intact_files_alone(root: Path) -> None:
    def render(text: str, must: bool) -> str | None:
        raise AssertionError("a changed file was opened")

    put(root, "chat_template.jinja", "evil")
    (problem,) = problems(root, render=render)
    assert problem.startswith("chat_template.jinja has 4 bytes; the manifest says ")


# Signature


def test_a_signature_without_a_key_is_not_checked(root: Path) -> None:
    sign(root)
    found = check(root)
    assert found.faults == ()
    assert found.signature.as_json() == {"state": "unchecked", "key": KEY}


def test_a_good_signature(root: Path) -> None:
    sign(root)
    asked: list[tuple[bytes, Mapping[str, str]]] = []

    def good(raw: bytes, digests: Mapping[str, str]) -> str | None:
        asked.append((raw, digests))
        return None

    found = check(root, authentic=good)
    assert (found.faults, found.signature.state) == ((), "good")
    assert asked == [((root / SIGNATURE).read_bytes(), digests_of(root))]


def test_a_bad_signature(root: Path) -> None:
    sign(root)
    found = check(root, authentic=lambda raw, digests: "was not made by this key")
    assert [str(each) for each in found.faults] == ["model.sig was not made by this key"]
    assert found.signature.state == "bad"


def test_a_key_demands_a_signature(root: Path) -> None:
    found = check(root, authentic=lambda raw, digests: None)
    assert [str(each) for each in found.faults] == [
        "model.sig is missing: the bundle is not signed"
    ]
    assert found.signature.state == "none"


def test_the_key_is_not_tried_on_a_damaged_bundle(root: Path) -> None:
    def never(raw: bytes, digests: Mapping[str, str]) -> str | None:
        raise AssertionError("the key was tried")

    sign(root)
    _change("LICENSE")(root)
    found = check(root, authentic=never)
    assert (len(found.faults), found.signature.state) == (1, "unchecked")


def test_a_signature_of_another_bundle_is_refused(root: Path) -> None:
    sign(root, lambda value: statement({**digests_of(root), "LICENSE": "0" * 64}))
    assert problems(root) == ["model.sig is of another content of LICENSE"]


def test_a_bundle_that_was_sealed_anew_is_not_the_signed_one(root: Path) -> None:
    sign(root)
    put(root, "LICENSE", "Another.\n")
    seal(root)
    assert "model.sig is of another content of LICENSE" in problems(root)
    assert "model.sig is of another content of manifest.json" in problems(root)


def test_a_signature_that_is_a_link_is_refused(root: Path) -> None:
    (root / SIGNATURE).symlink_to(root / "LICENSE")
    assert "model.sig is a symbolic link" in problems(root)


# Memory


class Steps(Silent):
    """Remembers the titles of steps and what was told of them."""

    def __init__(self) -> None:
        self.told: list[tuple[float | None, float | None]] = []
        self.titles: list[str] = []

    def step(self, title: str) -> Any:
        self.titles.append(title)
        return nullcontext(self)

    def update(
        self, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        self.told.append((done, total))


def remembering(root: Path, **options: Any) -> tuple[Check, list[Path]]:
    """A check with memories of its own, and the files whose templates it looked at."""
    looked: list[Any] = []

    def render(text: str, must: bool) -> str | None:
        looked.append(text)
        return None

    memory = root.parent / "memory"
    made = Check(
        DigestMemo.load(memory / "digests.json"),
        Examined.load(memory / "verified.json"),
        render=render,
        **options,
    )
    return made, looked


@pytest.mark.usefixtures("later")
def test_what_is_unchanged_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, looked = remembering(root)
    steps = Steps()
    assert first(root, steps).faults == ()
    assert looked
    size = first(root).bytes
    assert steps.told[-1] == (size, size)

    def never(path: Path, told: Any) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(digests_module, "_hash", never)
    again, looked = remembering(root)
    steps = Steps()
    assert again(root, steps).faults == ()
    assert (looked, steps.titles) == ([], [])


@pytest.mark.usefixtures("later")
def test_a_full_check_believes_no_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that keeps no time of its own, a change may leave no trace."""
    monkeypatch.setattr(memo_module, "_identity", file_identity)
    first, _ = remembering(root)
    assert first(root).faults == ()
    path = root / "model.gguf"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=times)
    again, _ = remembering(root)
    assert again(root).faults == ()
    full, _ = remembering(root, full=True)
    assert [fault.file for fault in full(root).faults] == ["model.gguf"]
    after, _ = remembering(root)
    assert [fault.file for fault in after(root).faults] == ["model.gguf"]


def test_a_bundle_with_other_files_is_examined_again(root: Path) -> None:
    first, _ = remembering(root)
    assert first(root).faults == ()
    put(root, "config.json", {"auto_map": {"a": "b"}})
    seal(root)
    again, looked = remembering(root)
    assert [fault.file for fault in again(root).faults] == ["config.json"]
    assert looked


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rules": 0, "passed": ["x"]}', '{"rules": 1}'])
def test_a_memory_that_is_damaged_or_of_older_rules_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "verified.json"
    path.write_text(text, encoding="utf-8")
    memory = Examined.load(path)
    assert not memory.knows("x")
    memory.add("x")
    assert Examined.load(path).knows("x")


def test_the_memory_is_bounded(tmp_path: Path) -> None:
    memory = Examined(tmp_path / "verified.json", [str(each) for each in range(KEPT)])
    memory.add("0")
    memory.add("new")
    assert (len(memory.passed), memory.knows("1"), memory.knows("0")) == (KEPT, False, True)


# Chance


def test_changed_bits_anywhere_are_refused(root: Path) -> None:
    """One bit at 60 random places, chosen by file first: each is refused, none crashes."""
    sign(root)
    checker, _ = remembering(root, authentic=lambda raw, digests: "was changed")
    numbers = random.Random(6)
    names = sorted(path.name for path in root.iterdir())
    for _ in range(60):
        path = root / numbers.choice(names)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(8)
        path.write_bytes(bad)
        assert checker(root).faults, path.name
        path.write_bytes(good)
    assert [str(each) for each in checker(root).faults] == ["model.sig was changed"]


@given(some.binary(max_size=400))
def test_random_bytes_as_a_manifest_are_a_list_of_problems(tmp_path: Path, raw: bytes) -> None:
    root = tmp_path / "bundle"
    root.mkdir(exist_ok=True)
    (root / MANIFEST).write_bytes(raw)
    found = check(root)
    assert found.manifest is None
    assert [fault.file for fault in found.faults] == [MANIFEST]


_JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: (
        some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(some.data())
def test_any_value_of_any_field_is_a_list_of_problems(tmp_path: Path, data: Any) -> None:
    root = tmp_path / "bundle"
    if not root.exists():
        write_bundle(root)
    good = (root / MANIFEST).read_bytes()
    document = json.loads(good)
    field = data.draw(some.sampled_from(sorted(document)))
    value = data.draw(_JSON)
    if json.dumps(document[field]) == json.dumps(value):
        return
    document[field] = value
    try:
        (root / MANIFEST).write_text(json.dumps(document, indent=1), encoding="utf-8")
        found = check(root)
        assert found.faults
        assert all(str(fault) for fault in found.faults)
    finally:
        (root / MANIFEST).write_bytes(good)


def test_a_signature_of_another_kind_is_no_crash(root: Path) -> None:
    for raw in (b"{}", b"[]", signature_text(signature_document(b"[]")), b"\x00" * 100):
        put(root, SIGNATURE, raw)
        (fault,) = check(root).faults
        assert fault.file == SIGNATURE
