"""The checkpoint check: whole folders pass, everything else is refused by the name of its file."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from model_files import CONFIG, HUGE, checkpoint, safetensors, tensor_entry, write_index

from deployer import checkpoint as module
from deployer.checkpoint import (
    INDEX,
    MAX_HEADER,
    PICKLES,
    check_checkpoint,
    require_safetensors,
    wanted_files,
)
from deployer.errors import SourceError

SHARD = "model.safetensors"
SECONDS = 3.0
PARTS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


def refusal(folder: Path) -> str:
    started = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError) as caught:
        check_checkpoint(folder)
    assert time.process_time() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    return caught.value.message


# Whole folders


def test_the_facts_of_a_whole_checkpoint(folder: Path) -> None:
    info = check_checkpoint(folder)
    assert info.architecture == "LlamaForCausalLM"
    assert info.parameters == 8 + 3
    assert info.bytes == (folder / SHARD).stat().st_size
    assert info.shards == 1


def test_shards_with_an_index_are_counted_together(tmp_path: Path) -> None:
    info = check_checkpoint(checkpoint(tmp_path / "model", PARTS))
    assert (info.shards, info.parameters) == (3, 33)


def test_all_parts_without_an_index_will_do(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", PARTS)
    (folder / INDEX).unlink()
    assert check_checkpoint(folder).shards == 3


def test_a_file_of_another_kind_beside_the_parts_is_left_alone(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", PARTS)
    (folder / "consolidated.safetensors").write_bytes(safetensors())
    assert check_checkpoint(folder).shards == 3


def test_a_link_within_the_folder_is_taken(folder: Path) -> None:
    (folder / SHARD).rename(folder / "blob")
    (folder / SHARD).symlink_to("blob")
    assert check_checkpoint(folder).parameters == 11


def test_a_scalar_and_an_empty_tensor_are_tensors(folder: Path) -> None:
    header = {"s": tensor_entry((), 0, 2), "e": tensor_entry((0, 4), 2, 2)}
    (folder / SHARD).write_bytes(safetensors(header, b"\0\0"))
    assert check_checkpoint(folder).parameters == 1


def test_metadata_of_the_header_is_no_tensor(folder: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": tensor_entry()}
    (folder / SHARD).write_bytes(safetensors(header, b"\0" * 16))
    assert check_checkpoint(folder).parameters == 8


def test_four_bit_types_are_measured(folder: Path) -> None:
    (folder / SHARD).write_bytes(safetensors({"a": tensor_entry((4,), 0, 2, "F4")}, b"\0\0"))
    assert check_checkpoint(folder).parameters == 4


# Which files count


def test_only_weights_and_texts_of_the_top_folder_are_wanted() -> None:
    names = [
        SHARD, "config.json", "tokenizer.model", "chat_template.jinja", "LICENSE.txt", "vocab.txt",
        "modeling_evil.py", "pytorch_model.bin", "sub/model.safetensors", "../x.safetensors",
        "run.sh", ".gitattributes", "model.gguf", "x.safetensors.py",
    ]  # fmt: skip
    assert wanted_files(names) == sorted(names[:6])


@pytest.mark.parametrize("suffix", PICKLES)
def test_a_pickle_only_folder_is_refused_and_never_loaded(tmp_path: Path, suffix: str) -> None:
    folder = checkpoint(tmp_path / "model", ())
    canary = tmp_path / "canary"
    pickle = b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (folder / f"weights{suffix}").write_bytes(pickle)
    message = refusal(folder)
    assert f"weights{suffix}" in message
    assert "run code" in message
    assert not canary.exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "no *.safetensors" in refusal(checkpoint(tmp_path / "model", ()))
    with pytest.raises(SourceError) as caught:
        require_safetensors(["README.md"], "some/model")
    assert "name and revision" in caught.value.hint


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent")


# Configurations that lie


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling.Evil"}}), "auto_map"),
        (json.dumps({"model_type": "llama"}), "does not name its architecture"),
        (json.dumps({"architectures": []}), "does not name its architecture"),
        (json.dumps({"architectures": "LlamaForCausalLM"}), "does not name its architecture"),
        (json.dumps({"architectures": [None]}), "does not name its architecture"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_a_configuration_that_lies_is_refused(folder: Path, content: str, words: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    message = refusal(folder)
    assert "config.json" in message
    assert words in message


def test_a_configuration_that_is_missing_huge_or_binary_is_refused(folder: Path) -> None:
    config = folder / "config.json"
    config.write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in refusal(folder)
    with config.open("wb") as stream:
        stream.truncate(10**10)
    assert "larger than" in refusal(folder)
    config.unlink()
    assert "config.json is missing" in refusal(folder)


# Indexes that lie


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a/../b"]
)
def test_an_index_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    write_index(folder, {"a": SHARD, "b": name})
    message = refusal(folder)
    assert INDEX in message
    assert repr(name) in message
    assert "outside the checkpoint" in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3])
def test_an_index_without_a_map_is_refused(folder: Path, weight_map: object) -> None:
    write_index(folder, weight_map)
    assert "has no weight_map" in refusal(folder)


@pytest.mark.parametrize("name", [None, 3, [], {"a": 1}, "absent.safetensors"])
def test_an_index_of_odd_names_is_refused(folder: Path, name: object) -> None:
    write_index(folder, {"a": name})
    refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", PARTS)
    (folder / PARTS[1]).unlink()
    assert refusal(folder).startswith(f"{PARTS[1]} is missing")
    (folder / INDEX).unlink()
    assert refusal(folder).startswith(f"{PARTS[1]} is missing")


def test_a_shard_that_the_index_does_not_list_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", PARTS)
    write_index(folder, {"a": PARTS[0], "b": PARTS[1]})
    assert PARTS[2] in refusal(folder)


# Links and odd files


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}", encoding="utf-8")
    (folder / "tokenizer_config.json").symlink_to(secret)
    message = refusal(folder)
    assert "tokenizer_config.json" in message
    assert "outside the checkpoint" in message


def test_a_link_to_nothing_and_a_link_in_a_circle_are_refused(folder: Path) -> None:
    link = folder / "more.safetensors"
    link.symlink_to("absent")
    assert "link to nothing" in refusal(folder)
    link.unlink()
    link.symlink_to(link.name)
    assert "link to nothing" in refusal(folder)


def test_a_folder_or_a_pipe_instead_of_a_shard_is_refused(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    assert "is no file" in refusal(folder)
    (folder / SHARD).rmdir()
    os.mkfifo(folder / SHARD)
    assert "is no file" in refusal(folder)


# Shards that lie


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**tensor_entry(), **changes}}


LIES: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "cut off: 0 bytes"),
    "seven bytes": (b"\0" * 7, "cut off: 7 bytes"),
    "header length 2^63": (safetensors(length=HUGE), str(HUGE)),
    "header length 2^64-1": (safetensors(length=2**64 - 1), str(2**64 - 1)),
    "header longer than the file": (safetensors(length=10_000), "10000"),
    "header that is no JSON": (safetensors(b"x" * 50), "unreadable header"),
    "header of deep brackets": (safetensors(b"[" * 100_000), "unreadable header"),
    "header that is no UTF-8": (safetensors(b'{"\xff": 1}'), "unreadable header"),
    "header that is a list": (safetensors(b"[]"), "no table of tensors"),
    "cut off": (safetensors()[:-1], "should have"),
    "too long": (safetensors() + b"\0", "should have"),
    "no tensor but bytes": (safetensors({}), "should have"),
    "overlapping": (
        safetensors({"a": tensor_entry(), "b": tensor_entry((2, 4), 8, 24)}),
        "overlapping or missing bytes at offset 8",
    ),
    "two over the same bytes": (
        safetensors({"a": tensor_entry(), "b": tensor_entry()}, b"\0" * 16),
        "overlapping or missing bytes at offset 0",
    ),
    "a gap": (
        safetensors({"a": tensor_entry(), "b": tensor_entry((3,), 18, 24)}),
        "missing bytes at offset 18",
    ),
    "negative offset": (safetensors(entry(data_offsets=[-16, 0])), "offset -16"),
    "backwards": (safetensors(entry(data_offsets=[16, 0])), "wrongly"),
    "offsets of 2^63": (safetensors(entry(data_offsets=[HUGE, HUGE + 16])), f"offset {HUGE}"),
    "offsets that are words": (safetensors(entry(data_offsets=["0", "16"])), "wrongly"),
    "offsets that are no numbers": (
        safetensors(b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[NaN,Infinity]}}'),
        "wrongly",
    ),
    "one offset": (safetensors(entry(data_offsets=[16])), "wrongly"),
    "no offsets": (safetensors({"a": {"dtype": "F16", "shape": []}}), "wrongly"),
    "shape that does not fit": (safetensors(entry(shape=[2, 5])), "[2, 5] in 16 bytes"),
    "shape that wraps": (safetensors(entry(shape=[2**62, 4])), "in 16 bytes"),
    "negative shape": (safetensors(entry(shape=[-2, -4])), "wrongly"),
    "shape that is a word": (safetensors(entry(shape="24")), "wrongly"),
    "shape of words": (safetensors(entry(shape=["2", "4"])), "wrongly"),
    "a million dimensions": (safetensors(entry(shape=[2] * 10**6)), "1000000 dimensions"),
    "unknown type": (safetensors(entry(dtype="F3")), "wrongly: 'F3'"),
    "type that is a list": (safetensors(entry(dtype=["F16"])), "wrongly"),
    "tensor that is a number": (safetensors({"a": 3}), "wrongly"),
    "tensor that is null": (safetensors({"a": None}), "wrongly"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_shard_that_lies_is_refused_by_name(folder: Path, lie: str) -> None:
    content, words = LIES[lie]
    (folder / SHARD).write_bytes(content)
    message = refusal(folder)
    assert SHARD in message
    assert words in message


def test_a_header_larger_than_any_is_refused_unread(folder: Path) -> None:
    with (folder / SHARD).open("wb") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(MAX_HEADER * 4)
    assert str(MAX_HEADER + 1) in refusal(folder)


def test_a_truncated_shard_tells_expected_and_actual_size(folder: Path) -> None:
    whole = safetensors()
    (folder / SHARD).write_bytes(whole[:-5])
    message = refusal(folder)
    assert f"should have {len(whole)} bytes and has {len(whole) - 5}" in message


def test_a_file_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "_check_shard", refuse)
    message = refusal(folder)
    assert SHARD in message
    assert "Permission denied" in message


# Anything at all


def mutate(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 20)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 20)]
            case 3:
                word = rng.choice(
                    [b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"9" * 40]
                )
                data[at : at + rng.randint(0, 3)] = word
            case _:
                data[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), 2**31, HUGE]))
    return bytes(data)


def check_anything(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    try:
        info = check_checkpoint(folder)
    except SourceError as error:
        assert error.message
    else:
        assert info.parameters >= 0


TARGETS = {
    SHARD: safetensors(),
    "config.json": json.dumps(CONFIG).encode(),
    INDEX: json.dumps({"weight_map": {"a": SHARD}}).encode(),
}


@given(strategies.integers(0, 2**32), strategies.sampled_from(sorted(TARGETS)))
def test_any_mutated_file_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, name: str
) -> None:
    folder = checkpoint(tmp_path_factory.getbasetemp() / "mutated-checkpoint")
    (folder / INDEX).unlink(missing_ok=True)
    check_anything(folder, name, mutate(random.Random(seed), TARGETS[name]))


@given(strategies.binary(max_size=120))
def test_any_header_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: bytes
) -> None:
    folder = checkpoint(tmp_path_factory.getbasetemp() / "any-checkpoint")
    check_anything(folder, SHARD, safetensors(header, b""))


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_thousands_of_mutated_files_are_taken_or_refused(folder: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(3_400):
        started = time.process_time()
        check_anything(folder, name, mutate(random.Random(seed), TARGETS[name]))
        assert time.process_time() - started < 5.0, f"seed {seed}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10
