"""How a bundle is served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from deployer.recipe.section import Positive, Section, Text

SERVERS = {
    "llama.cpp": ("auto", "llama-server", "source", "xllamacpp", "llama-cpp-python"),
    "vllm": ("auto", "vllm"),
    "transformers": ("auto", "transformers"),
}
"""Engine -> what `serve.server` may say."""


MOST_CPUS = 8192
"""The kernel's own limit for a machine."""
MOST_NODES = 1024
_CPU_LIST = r"^[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*$"
_HERE = ("cores", "numa_node", "memory_limit_gib")
"""Fields that came after bundles were made; they are written only where they are set."""


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list as the kernel writes it, for example 0-3,8.

    Raises ValueError for a range that runs backwards or beyond any machine.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise ValueError(f"the range {part} runs backwards")
        if high >= MOST_CPUS:
            raise ValueError(f"no machine has CPU {high}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


class LoraAdapter(Section):
    """A LoRA adapter that is served beside the model, under its own name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=64)] = Field(
        description="Name that clients ask for."
    )
    path: Text = Field(description="Folder of the adapter (adapter_config.json and safetensors).")


class Vllm(Section):
    """Settings that only vLLM has."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of activations and unquantized weights; auto: the checkpoint's."
    )
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="GPUs that share every layer."
    )
    pipeline_parallel: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Groups of GPUs that hold consecutive layers."
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9, description="Share of each GPU's memory that vLLM takes."
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        "auto", description="Type of the key-value cache; fp8 needs a GPU."
    )
    kv_cache_gib: Annotated[float, Field(gt=0.0, le=4096.0)] | None = Field(
        None,
        description="Size of the key-value cache, GiB per device. Default: on a CPU what parallel "
        "requests of full context take; on a GPU what gpu_memory_utilization leaves.",
    )
    prefix_caching: bool = Field(True, description="Reuse the cache of prompts that begin alike.")
    chunked_prefill: bool = Field(True, description="Mix pieces of long prompts with decoding.")
    max_batched_tokens: Positive | None = Field(
        None, description="Tokens computed per step; default: vLLM's own choice."
    )
    eager: bool = Field(
        False, description="Do not compile the model: starts sooner, decodes slower."
    )
    lora: tuple[LoraAdapter, ...] = Field((), description="Adapters served beside the model.")


class Transformers(Section):
    """Settings that only the engine transformers has."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of activations and unquantized weights; auto: the checkpoint's."
    )


class Serve(Section):
    """How the bundle is served."""

    server: Literal[
        "auto", "llama-server", "source", "xllamacpp", "llama-cpp-python", "vllm", "transformers"
    ] = Field(
        "auto",
        description="llama-server: an installed one. source: built once from the pinned "
        "release. xllamacpp: the same native server from a prebuilt wheel. llama-cpp-python: "
        "the Python server, one request at a time. auto never takes one that must be compiled "
        "first. The engines vllm and transformers have one server each, of the same name.",
    )
    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z:][0-9A-Za-z.:-]*$", max_length=253)] = Field(
        "127.0.0.1", description="Address to listen on; other than loopback needs api_key_file."
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8080, description="TCP port; 0 takes a free one."
    )
    context: Annotated[int, Field(ge=64, le=10_000_000)] = Field(
        2048, description="Tokens a request may use, prompt and output together."
    )
    parallel: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="Slots: requests that are decoded at the same time."
    )
    threads: Positive | None = Field(
        None, description="CPU threads; default: the physical cores this process may use."
    )
    cores: Annotated[str, Field(pattern=_CPU_LIST, max_length=1024)] | None = Field(
        None,
        description="CPUs the server runs on, such as 0-3,8; default: all this process may use.",
    )
    numa_node: Annotated[int, Field(ge=0, lt=MOST_NODES)] | None = Field(
        None,
        description="NUMA node whose memory the server uses; without cores it runs on its CPUs.",
    )
    memory_limit_gib: Annotated[float, Field(gt=0.0, le=65536.0)] | None = Field(
        None,
        description="Memory at which the server is ended and started again, GiB; it is watched "
        "each second, not enforced by the kernel.",
    )
    api_key_file: Text | None = Field(
        None, description="File with one API key a line; relative to the recipe."
    )
    ready_timeout: Annotated[int, Field(ge=1, le=86_400)] = Field(
        600, description="Seconds until the first token must have come."
    )
    drain_timeout: Annotated[int, Field(ge=0, le=86_400)] = Field(
        30, description="Seconds that running requests get to finish after SIGTERM."
    )
    vllm: Vllm = Field(default_factory=Vllm)
    transformers: Transformers = Field(default_factory=Transformers)
    extra_args: tuple[Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")], ...] = Field(
        (), description="Further arguments, handed to the server as they are."
    )

    @field_validator("cores")
    @classmethod
    def _a_list_of_cpus(cls, value: str | None) -> str | None:
        if value is not None:
            cpu_list(value)
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe that sets none of `_HERE` keeps the digests and keys that it had before."""
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if v is not None or k not in _HERE}
