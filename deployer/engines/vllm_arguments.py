"""The arguments of vLLM's server that deployer sets, as a strict record, and their argv."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployer.errors import PlanError

RELEASE = "0.32.0"
"""The release that the toolchains lock."""
OLDEST = (0, 10)
"""Older releases spell flags differently; nobody looked at how."""
FIRST_RELEASE = {
    "kv_cache_memory_bytes": (0, 11),
    "disable_access_log_for_endpoints": (0, 16),
    "shutdown_timeout": (0, 18),
    "model_loader_extra_config": (0, 21),  # enable_weights_track in it
}
"""Argument -> the first release that knows it; all others are older than OLDEST."""
DISPENSABLE = frozenset(FIRST_RELEASE) - {"kv_cache_memory_bytes"}
"""Those without which the same model is served as well, if with less care."""


class Arguments(BaseModel):
    """One field an argument, named as vLLM names it; None leaves it to vLLM.

    Sizes are in bytes, lengths in tokens, times in seconds. `api_key_file` is the one argument
    that `workers/serve_vllm.py` adds.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: str
    served_model_name: str
    host: str
    port: int = Field(ge=0, le=65535)
    max_model_len: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["bitsandbytes"] | None = None
    hf_overrides: dict[str, Any] | None = None
    model_loader_extra_config: dict[str, Any] | None = None
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    kv_cache_memory_bytes: int | None = Field(None, ge=1)
    gpu_memory_utilization: float | None = Field(None, gt=0.0, le=1.0)
    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_num_batched_tokens: int | None = Field(None, ge=1)
    enforce_eager: bool = False
    enable_lora: bool = False
    max_loras: int | None = Field(None, ge=1)
    lora_modules: tuple[dict[str, str], ...] = ()
    shutdown_timeout: int | None = Field(ge=0)
    api_key_file: str | None = None
    disable_access_log_for_endpoints: str | None = "/health,/metrics"
    disable_fastapi_docs: bool = True

    def known_to(self, release: str) -> Arguments:
        """The same for another release of vLLM, such as 0.18.1, without what it does not know.

        Raises PlanError where that is no release, or one that cannot do what is asked.
        """
        number = _number(release)
        unknown = [
            name
            for name, first in FIRST_RELEASE.items()
            if number < first and getattr(self, name) is not None
        ]
        for name in unknown:
            if name not in DISPENSABLE:
                first = ".".join(map(str, FIRST_RELEASE[name]))
                raise PlanError(
                    f"vLLM {release} does not know --{name.replace('_', '-')}, which serves this "
                    "bundle in the memory it is planned for",
                    f"Take {first} or newer; bundles are measured with {RELEASE}.",
                )
        return self.model_copy(update=dict.fromkeys(unknown))

    def argv(self) -> tuple[str, ...]:
        """The command line: `--flag value`, `--flag` or `--no-flag`."""
        words: list[str] = []
        for name, value in self:
            flag = f"--{name.replace('_', '-')}"
            if value is None or value == ():
                continue
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, tuple):
                words += [flag, *map(_word, value)]
            else:
                words += [flag, _word(value)]
        return tuple(words)


def _number(release: str) -> tuple[int, int]:
    """The first two numbers of a release."""
    found = re.match(r"v?(\d+)\.(\d+)", release)
    if found is None:
        raise PlanError(f"{release!r} is no release of vLLM", f"Give one such as {RELEASE}.")
    number = int(found[1]), int(found[2])
    if number < OLDEST:
        raise PlanError(
            f"vLLM {release} is too old: its arguments are not known here",
            f"Take {'.'.join(map(str, OLDEST))} or newer; bundles are measured with {RELEASE}.",
        )
    return number


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


_SET_BY = {
    "served_model_name": "the recipe's name",
    "host": "serve.host",
    "port": "serve.port",
    "max_model_len": "serve.context",
    "max_num_seqs": "serve.parallel",
    "dtype": "serve.vllm.dtype",
    "quantization": "quantization.method",
    "kv_cache_dtype": "serve.vllm.kv_cache_dtype",
    "kv_cache_memory_bytes": "serve.vllm.kv_cache_gib",
    "gpu_memory_utilization": "serve.vllm.gpu_memory_utilization",
    "tensor_parallel_size": "serve.vllm.tensor_parallel",
    "pipeline_parallel_size": "serve.vllm.pipeline_parallel",
    "enable_prefix_caching": "serve.vllm.prefix_caching",
    "enable_chunked_prefill": "serve.vllm.chunked_prefill",
    "max_num_batched_tokens": "serve.vllm.max_batched_tokens",
    "enforce_eager": "serve.vllm.eager",
    "enable_lora": "serve.vllm.lora",
    "lora_modules": "serve.vllm.lora",
    "shutdown_timeout": "serve.drain_timeout",
    "api_key_file": "serve.api_key_file",
}
_OTHER_SPELLINGS = {
    "-q": "quantization.method", "-tp": "serve.vllm.tensor_parallel",
    "-pp": "serve.vllm.pipeline_parallel", "--api-key": "serve.api_key_file",
    "--uds": "serve.host",
}  # fmt: skip
_THE_MODEL = (
    "--model", "--model-tag", "--tokenizer", "--revision", "--code-revision",
    "--tokenizer-revision", "--hf-config-path", "--load-format", "--download-dir",
)  # fmt: skip
_NEVER = {
    "--trust-remote-code": "deployer runs no code that comes with a model.",
    "--config": "Settings stand in the recipe alone.",
    "--headless": "deployer serves over HTTP.",
    "--model-loader-extra-config": "deployer sets it, so that no weight may be missing.",
}


def check_extra(extra_args: tuple[str, ...]) -> None:
    """Refuse arguments that deployer sets itself or never sets; raises PlanError."""
    for argument in extra_args:
        reason = _refusal(argument)
        if reason:
            raise PlanError(f"serve.extra_args must not hold {argument.split('=', 1)[0]}", reason)


def _refusal(argument: str) -> str | None:
    """Why an extra argument cannot be, in any spelling vLLM accepts; None where it can."""
    flag = argument.split("=", 1)[0].replace("_", "-")
    flag = flag.split(".", 1)[0]  # --hf-overrides.rope_theta sets one key of --hf-overrides
    if flag in _NEVER:
        return _NEVER[flag]
    if flag in _THE_MODEL:
        return "It is set by the bundle."
    name = flag.removeprefix("--no-").removeprefix("--").replace("-", "_")
    source = _OTHER_SPELLINGS.get(flag) or (_SET_BY.get(name) if flag[:2] == "--" else None)
    return f"It is set by {source}." if source else None
