"""What is checked before a start: keys, exposure, port, memory, weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployer import machine
from deployer.artifacts import FOLDER, Bundle, FileEntry, Manifest
from deployer.engines import Memory
from deployer.errors import PlanError, ServerError, UsageError
from deployer.progress import SILENT, Silent
from deployer.recipe import LoraAdapter, Serve, Vllm
from deployer.serving import preflight

GIB = 1 << 30


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def bundle_of(root: Path, size: int, **quantization: object) -> Bundle:
    weights = root / "model.gguf"
    with weights.open("wb") as stream:
        stream.truncate(size)
    entry = FileEntry(path="model.gguf", size=size, sha256="0")
    manifest = Manifest(
        name="m", digest="0", engine="llama.cpp", weights="model.gguf", size_bytes=size,
        bits_per_weight=4.5, files=(entry,), recipe={}, serve={}, source={},
        quantization=quantization, quality={}, parity={}, tools={}, created_by="test",
    )  # fmt: skip
    return Bundle(root, manifest)


def test_the_first_key_that_is_no_comment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\nfirst\nsecond\n")
    path.chmod(0o600)
    warnings = Warnings()
    assert preflight.read_key(path, warnings) == "first"
    assert warnings.said == []
    path.chmod(0o644)
    preflight.read_key(path, warnings)
    assert warnings.said == [f"others on this machine can read {path}; run: chmod 600 {path}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (b"windows\r\n", "spaces at its ends"),
        (b" space\n", "spaces at its ends"),
        ("schlüssel\n".encode(), "no header can carry"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_key_files_no_server_could_use(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        preflight.read_key(path, SILENT)


def test_an_absent_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        preflight.read_key(tmp_path / "absent", SILENT)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    preflight.check_exposure(host, has_key=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_one(host: str) -> None:
    with pytest.raises(UsageError, match="there is no API key"):
        preflight.check_exposure(host, has_key=False)
    preflight.check_exposure(host, has_key=True)


def test_a_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_options: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="is no address"):
        preflight.check_exposure("host.invalid", has_key=False)
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        preflight.take_port("192.0.2.1", 8080)


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind((host, 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def test_a_taken_port_names_its_holder_and_the_way_out() -> None:
    with listening() as port:
        with pytest.raises(ServerError, match=f"in use by pid {os.getpid()} ") as caught:
            preflight.take_port("127.0.0.1", port)
        assert f"port {port} of 127.0.0.1" in caught.value.message
        assert "--set serve.port=" in caught.value.hint
    assert preflight.take_port("127.0.0.1", port) == port


def test_a_port_taken_on_every_address_is_taken_on_loopback() -> None:
    with listening("0.0.0.0") as port, pytest.raises(ServerError, match="in use"):
        preflight.take_port("127.0.0.1", port)


def test_port_zero_takes_a_free_one() -> None:
    port = preflight.take_port("127.0.0.1", 0)
    assert 1024 <= port <= 65535


def test_memory_is_refused_with_the_arithmetic_and_what_fits() -> None:
    needed = Memory(weights=2 * GIB, cache=4 * GIB, buffers=GIB // 4)
    serve = Serve(context=1024, parallel=4)
    preflight.check_memory(needed, serve, available=needed.total)
    with pytest.raises(PlanError) as caught:
        preflight.check_memory(needed, serve, available=5 * GIB)
    assert caught.value.message == (
        "serving needs 6.25 GiB of memory and 5.00 GiB are available: weights 2.00 GiB + cache "
        "4.00 GiB (4 slots of 1024 tokens) + buffers 0.25 GiB"
    )
    assert "--set serve.parallel=2" in caught.value.hint


def test_a_cache_of_a_given_size_is_lowered_itself() -> None:
    serve = Serve(vllm=Vllm(kv_cache_gib=4))
    with pytest.raises(PlanError) as caught:
        preflight.check_memory(Memory(2 * GIB, 4 * GIB, GIB), serve, available=5 * GIB)
    assert "--set serve.vllm.kv_cache_gib=2 " in caught.value.hint


def test_what_others_were_promised_and_the_node_are_told() -> None:
    with pytest.raises(PlanError) as caught:
        preflight.check_memory(Memory(2 * GIB, 0, 0), Serve(numa_node=1), GIB, reserved=3 * GIB)
    assert caught.value.message.startswith(
        "serving needs 2.00 GiB of memory and 1.00 GiB are available on NUMA node 1 (3.00 GiB more "
        "are promised to servers beside it): weights"
    )


def test_a_limit_below_what_is_needed_is_refused() -> None:
    needed = Memory(2 * GIB, GIB, GIB // 4)
    preflight.check_limit(needed, Serve())
    preflight.check_limit(needed, Serve(memory_limit_gib=3.25))
    with pytest.raises(PlanError, match=r"needs 3\.25 GiB .*memory_limit_gib is 3: wei") as caught:
        preflight.check_limit(needed, Serve(memory_limit_gib=3))
    assert "memory_limit_gib to 3.3 or more" in caught.value.hint


def test_weights_alone_too_large() -> None:
    with pytest.raises(PlanError) as caught:
        preflight.check_memory(Memory(2 * GIB, 0, GIB), Serve(), available=GIB)
    assert "fewer bits per weight" in caught.value.hint


def test_absent_or_cut_weights_are_named(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, 1000)
    preflight.check_weights(bundle)
    bundle.weights.write_bytes(b"short")
    with pytest.raises(ServerError, match="has 5 bytes, its manifest says 1000"):
        preflight.check_weights(bundle)
    bundle.weights.unlink()
    with pytest.raises(ServerError, match=r"has no model\.gguf"):
        preflight.check_weights(bundle)


def test_a_checkpoint_is_checked_file_by_file(tmp_path: Path) -> None:
    sizes = {"config.json": 20, "a.safetensors": 100, "b.safetensors": 50, "README.md": 7}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    files = tuple(FileEntry(path=name, size=size, sha256="0") for name, size in sizes.items())
    whole = bundle_of(tmp_path, 1)
    manifest = whole.manifest.model_copy(
        update={"engine": "vllm", "weights": FOLDER, "files": files}
    )
    bundle = Bundle(tmp_path, manifest)
    preflight.check_weights(bundle)
    assert bundle.manifest.weights_bytes == 150
    (tmp_path / "README.md").unlink()  # nothing the engine needs
    preflight.check_weights(bundle)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 49)
    with pytest.raises(ServerError, match=r"b\.safetensors has 49 bytes, its manifest says 50"):
        preflight.check_weights(bundle)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ServerError, match=r"has no b\.safetensors"):
        preflight.check_weights(bundle)


def test_an_adapter_without_its_files_is_refused(tmp_path: Path) -> None:
    serve = Serve(vllm=Vllm(lora=(LoraAdapter(name="poet", path=str(tmp_path)),)))
    with pytest.raises(UsageError, match="adapter poet has no adapter_config"):
        preflight.check_lora(serve)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    preflight.check_lora(serve)


def fake_cgroup(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / name.replace("_", ".")).write_text(text)
    return root


def test_cores_share_siblings_and_obey_a_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2}, raising=False)
    assert machine.usable_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    fake_cgroup(tmp_path, cpu_max="50000 100000")
    assert machine.usable_cores() == 1
    fake_cgroup(tmp_path, cpu_max="max 100000")
    assert machine.usable_cores() == 2


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", fake_cgroup(tmp_path))
    unlimited = machine.available_memory()
    fake_cgroup(tmp_path, memory_max="1000000", memory_current="400000")
    assert machine.available_memory() == min(600_000, unlimited)
    fake_cgroup(tmp_path, memory_max="max")
    assert machine.available_memory() > 600_000
