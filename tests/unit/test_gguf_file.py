"""The GGUF header check: right about whole files, quick and calm about files that lie."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, strategies
from model_files import (
    ARRAY,
    BF16,
    F16,
    F32,
    HUGE,
    INT32,
    METADATA,
    Q4_0,
    Q8_0,
    STRING,
    Tensor,
    array,
    gguf,
    text,
)

from deployer import gguf_file
from deployer.errors import SourceError
from deployer.gguf_file import GgufInfo, chat_templates, inspect_gguf

Write = Callable[[bytes], Path]
SECONDS = 3.0
"""A refusal takes milliseconds; a busy machine may take longer, a believed number for ever."""
MEMORY = 64 << 10
"""KiB that refusing a file may add to the process's peak."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write_file


def refusal(path: Path) -> str:
    """The message of the SourceError that a file is refused with, quickly and in little memory."""
    inspect_whole = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError) as caught:
        inspect_gguf(path)
    assert time.process_time() - inspect_whole < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


def raw(kind: int, payload: bytes) -> bytes:
    """The bytes of a metadata value: its kind and what follows."""
    return struct.pack("<I", kind) + payload


# Whole files


def test_the_facts_of_a_whole_file(write: Write) -> None:
    tensors = [Tensor("a", (64, 3), Q4_0), Tensor("b", (32, 2), F16), Tensor("n", (8,), F32)]
    info = inspect_gguf(write(gguf(tensors=tensors)))
    assert (info.architecture, info.name, info.tensors) == ("llama", "tiny", 3)
    assert info.types == {"Q4_0": 1, "F16": 1, "F32": 1}
    assert info.parameters == 64 * 3 + 32 * 2 + 8
    assert info.tensor_bytes == 64 * 3 // 32 * 18 + 32 * 2 * 2 + 8 * 4
    assert info.bits_per_weight == pytest.approx(8 * info.tensor_bytes / info.parameters, abs=1e-4)
    assert info.context_length == 128
    assert info.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert not info.has_chat_template
    assert info.quantized


@pytest.mark.parametrize(
    ("kinds", "quantized"),
    [((F16,), False), ((F32, BF16), False), ((F32, Q8_0), True), ((Q4_0, Q8_0), True)],
)
def test_what_counts_as_quantized(write: Write, kinds: tuple[int, ...], quantized: bool) -> None:
    tensors = [Tensor(str(kind), (32,), kind) for kind in kinds]
    assert inspect_gguf(write(gguf(tensors=tensors))).quantized is quantized


def test_the_record_survives_json(write: Write) -> None:
    info = inspect_gguf(write(gguf()))
    assert GgufInfo.model_validate(info.as_json()) == info


def test_arrays_and_every_kind_of_number_are_stepped_over(write: Write) -> None:
    numbers = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
    metadata = {
        **METADATA,
        "tokens": array(STRING, text("a") + text("bc"), 2),
        "scores": array(INT32, struct.pack("<3i", 1, 2, 3), 3),
        "empty": array(STRING, b"", 0),
        **{f"k{kind}": raw(kind, struct.pack(form, 1)) for kind, form in numbers.items()},
        "tokenizer.chat_template": "{{ messages }}",
    }
    info = inspect_gguf(write(gguf(metadata)))
    assert info.has_chat_template
    assert info.tensors == 2


def test_version_2_and_a_wider_alignment_are_read(write: Write) -> None:
    assert inspect_gguf(write(gguf(version=2))).tensors == 2
    metadata = {**METADATA, "general.alignment": 4096}
    assert inspect_gguf(write(gguf(metadata, alignment=4096))).tensors == 2


def test_what_is_not_told_is_none(write: Write) -> None:
    info = inspect_gguf(write(gguf({})))
    assert (info.architecture, info.name) == ("unknown", "")
    assert info.context_length is None
    assert info.kv_bytes_per_token is None


@pytest.mark.parametrize("lie", [0, "many", 1.5])
def test_odd_numbers_of_heads_give_no_cache_size(write: Write, lie: object) -> None:
    for field in ("block_count", "attention.head_count", "embedding_length"):
        info = inspect_gguf(write(gguf({**METADATA, f"llama.{field}": lie})))
        assert info.kv_bytes_per_token is None


def test_an_odd_key_width_gives_no_cache_size(write: Write) -> None:
    metadata = {**METADATA, "llama.attention.key_length": "wide"}
    assert inspect_gguf(write(gguf(metadata))).kv_bytes_per_token is None


def test_it_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

    path = tmp_path / "written.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(77)
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    writer.add_chat_template("{{ x }}")
    writer.add_token_list(["a", "b", "c"])
    noise = numpy.random.default_rng(1).standard_normal((4, 64), dtype=numpy.float32)
    packed = quants.quantize(noise, GGMLQuantizationType.Q4_0)
    writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("half", noise.astype(numpy.float16))
    writer.add_tensor("full", noise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours, theirs = inspect_gguf(path), GGUFReader(path).tensors
    assert ours.tensors == len(theirs) == 3
    assert ours.parameters == sum(int(tensor.n_elements) for tensor in theirs)
    assert ours.tensor_bytes == sum(int(tensor.n_bytes) for tensor in theirs)
    assert ours.types == {tensor.tensor_type.name: 1 for tensor in theirs}
    assert (ours.architecture, ours.context_length) == ("llama", 77)
    assert ours.kv_bytes_per_token == 3 * 8 * (8 + 8) * 2
    assert ours.has_chat_template


# Files that lie


LIES = {
    "not GGUF": (gguf(magic=b"PK\x03\x04"), "letters GGUF"),
    "pickle": (b"\x80\x04\x95" + b"\0" * 100, "letters GGUF"),
    "pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "letters GGUF"),
    "empty": (b"", "letters GGUF"),
    "four bytes": (b"GGUF", "beyond its end"),
    "version 1": (gguf(version=1), "version 1"),
    "version of another byte order": (gguf(version=3 << 24), "version"),
    "n_tensors 2^63": (gguf(n_tensors=HUGE), f"{HUGE} tensors"),
    "n_kv 2^63": (gguf(n_entries=HUGE), f"{HUGE} metadata entries"),
    "a million tensors that are not there": (gguf(n_tensors=1 << 20), "no usable GGUF"),
    "a million entries that are not there": (gguf(n_entries=1 << 20), "no usable GGUF"),
    "key length 2^63": (gguf({}, n_entries=1) + text(b"", HUGE), "no usable GGUF"),
    "text of 2^63": (gguf({"k": raw(STRING, text(b"", HUGE))}), f"{HUGE} bytes"),
    "text beyond the end": (gguf({"k": raw(STRING, text(b"", 1 << 20))}), "beyond its end"),
    "array of 2^63 numbers": (gguf({"k": array(INT32, b"", HUGE)}), "beyond its end"),
    "array of 2^63 texts": (gguf({"k": array(STRING, b"", HUGE)}), f"{HUGE} texts"),
    "array of arrays": (gguf({"k": array(ARRAY, b"", 1)}), "unknown kind 9"),
    "kind 99": (gguf({"k": raw(99, b"")}), "unknown kind 99"),
    "alignment 0": (gguf({"general.alignment": 0}), "alignment of 0"),
    "alignment 2^31": (gguf({"general.alignment": 1 << 31}), "alignment"),
    "alignment that is a word": (gguf({"general.alignment": "x"}), "alignment of x"),
    "no dimension": (gguf(dimensions=0), "0 dimensions"),
    "2^32-1 dimensions": (gguf(dimensions=2**32 - 1), "dimensions"),
    "dimensions that wrap": (gguf(tensors=[Tensor("w", (1 << 62, 4))], data=b""), "tensors need"),
    "dimension 0": (gguf(tensors=[Tensor("w", (0, 4))]), "impossible"),
    "width no multiple of a block": (gguf(tensors=[Tensor("w", (33, 2), Q4_0)]), "impossible"),
    "type 999": (gguf(tensors=[Tensor("w", (32,), 999)]), "unknown type 999"),
    "offset 2^63": (gguf(tensors=[Tensor("w", offset=HUGE)]), "tensors need"),
    "offset behind the end": (gguf(tensors=[Tensor("w", offset=4096)]), "tensors need"),
    "no data": (gguf(data=b""), "tensors need"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_name(write: Write, lie: str) -> None:
    content, words = LIES[lie]
    assert words in refusal(write(content))


def test_two_tensors_over_the_same_bytes_are_refused(write: Write) -> None:
    tensors = [Tensor("a", offset=0), Tensor("b", offset=32)]
    assert "overlap" in refusal(write(gguf(tensors=tensors, data=b"\0" * 256)))


def test_two_tensors_of_one_name_are_refused(write: Write) -> None:
    assert "twice" in refusal(write(gguf(tensors=[Tensor("a"), Tensor("a")])))


def test_an_offset_off_the_alignment_is_refused(write: Write) -> None:
    content = gguf(tensors=[Tensor("a", offset=7)], data=b"\0" * 256)
    assert "alignment" in refusal(write(content))


def test_a_million_layers_are_only_a_number(write: Write) -> None:
    info = inspect_gguf(write(gguf({**METADATA, "llama.block_count": 1_000_000})))
    assert info.kv_bytes_per_token == 1_000_000 * 2 * 32 * 2


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_file_cut_off_anywhere_is_refused(write: Write, keep: float) -> None:
    whole = gguf(tensors=[Tensor("a", (64, 8)), Tensor("b", (64, 8))])
    refusal(write(whole[: int(len(whole) * keep)]))


def test_many_texts_that_are_not_there_are_refused_quickly(write: Write) -> None:
    content = gguf({"k": array(STRING, b"\0" * (4 << 20), 1 << 19)}, tensors=[])
    inspect_gguf(write(content))  # half a million empty texts, each really there
    refusal(write(content[: 2 << 20]))


def test_a_missing_file_and_a_folder_are_source_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            inspect_gguf(path)


# Anything at all


def inspect_anything(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        info = inspect_gguf(path)
    except SourceError as error:
        assert error.message
    else:
        assert info.tensor_bytes <= len(content)


@given(strategies.binary(max_size=200).map(lambda tail: b"GGUF" + tail))
@example(b"GGUF\x03\0\0\0" + b"\xff" * 64)
@example(gguf({}, []))
def test_any_bytes_are_described_or_refused(tmp_path: Path, content: bytes) -> None:
    inspect_anything(tmp_path / "any.gguf", content)


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Some bytes set, cut out, doubled, or a number replaced by one that lies."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 3:
                lie = rng.choice([0, 1, 9, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
                data[at : at + 8] = struct.pack("<Q", lie)
            case _:
                data[at : at + 4] = struct.pack("<I", rng.choice([0, 2, 8, 9, 12, 13, 2**31]))
    return bytes(data)


WHOLE = gguf(
    {**METADATA, "general.alignment": 32, "tokens": array(STRING, text("a") + text("bc"), 2)},
    [Tensor("a", (64, 3), Q4_0), Tensor("b", (32, 2), F16), Tensor("n", (8,), F32)],
)


@given(strategies.integers(0, 2**32))
def test_any_mutated_file_is_described_or_refused(tmp_path: Path, seed: int) -> None:
    inspect_anything(tmp_path / "mutated.gguf", mutate(random.Random(seed), WHOLE))


def test_texts_are_bounded_together(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may be the whole of a large file; what is kept of it must not be."""
    path = write(gguf({**METADATA, "a": "x" * 600, "b": "x" * 600}))
    assert inspect_gguf(path).architecture == "llama"
    monkeypatch.setattr(gguf_file, "MAX_TEXTS", 1200)
    with pytest.raises(SourceError, match="over 1200 bytes of texts"):
        inspect_gguf(path)


def test_chat_templates_are_those_of_the_metadata(write: Write) -> None:
    told = {"tokenizer.chat_template": "a", "tokenizer.chat_template.rag": "b"}
    assert chat_templates(write(gguf({**METADATA, **told}))) == told
    assert chat_templates(write(gguf())) == {}
    with pytest.raises(SourceError, match="no usable GGUF file"):
        chat_templates(write(b"GGUF"))
