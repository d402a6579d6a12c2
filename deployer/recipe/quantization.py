"""How the weights are made smaller, and on which text that is tuned."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from deployer.recipe.section import Positive, Repository, Revision, Section, Text, check_dataset

GGUF_SCHEMES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s",
    "q4_1", "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s", "iq4_nl", "iq4_xs", "iq3_m",
    "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
    "q2_0", "q1_0", "tq1_0", "tq2_0", "mxfp4_moe",
)  # fmt: skip
NEED_IMATRIX = frozenset(
    {"iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s"}
)
"""Types llama-quantize refuses to make without an importance matrix."""

SCHEMES: dict[str, tuple[str, ...]] = {
    "gguf": GGUF_SCHEMES,
    "awq": ("w4a16",),
    "gptq": ("w4a16", "w8a16", "w8a8"),
    "bitsandbytes": ("nf4", "int8"),
    "quanto": ("int8", "int4", "int2", "float8"),
    "hqq": ("int8", "int4", "int3", "int2"),
    "torchao": ("int8", "int4"),
    "none": (),
}
"""Method -> the schemes it makes."""
WHILE_LOADING = frozenset({"bitsandbytes", "quanto", "hqq", "torchao"})
"""Methods by which the engine quantizes the 16-bit weights each time it loads them."""
TOOLS: dict[str, tuple[str, ...]] = {
    "gguf": ("gguf", "llama-quantize"),
    "awq": ("llm-compressor", "autoawq"),
    "gptq": ("llm-compressor", "auto-gptq"),
    "bitsandbytes": (),
    "quanto": (),
    "hqq": (),
    "torchao": (),
    "none": (),
}
"""Method -> the tools that carry it out."""
KNOBS: dict[str, dict[str, Any]] = {
    "gguf": {"imatrix": False},
    "awq": {
        "group_size": 128, "zero_point": True, "clip": False, "ignore": ("lm_head",),
        "offload": False,
    },
    "gptq": {
        "group_size": 128, "sym": True, "desc_act": False, "damp_percent": 0.01,
        "ignore": ("lm_head",), "offload": False,
    },
    "bitsandbytes": {"double_quant": False},
    "quanto": {},
    "hqq": {"group_size": 64},
    "torchao": {"group_size": 64},
    "none": {},
}  # fmt: skip
"""Method -> the knobs it has, with their defaults."""
MIXED_TYPES = (
    "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", "iq2_xs",
    "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs",
)  # fmt: skip
"""llama.cpp's tensor types that a mix may be made of."""
DEFAULT_MIXED_TYPES = ("q3_k", "iq4_nl", "q4_k", "q5_0", "q5_k", "q6_k", "q8_0")
_ALL_SCHEMES = tuple(dict.fromkeys(name for names in SCHEMES.values() for name in names))
_PER_CHANNEL = (("gptq", "w8a8"), ("torchao", "int8"))
"""Method and scheme with one scale per output channel, so without groups."""


class Mixed(Section):
    """Mixed precision: every part of the model gets its own type, by what rounding it costs."""

    budget_bpw: Annotated[float, Field(gt=0.0, le=16.0)] | None = Field(
        None, description="Bits a weight at most, all tensors counted; the best mix is chosen."
    )
    max_kl_divergence: Annotated[float, Field(gt=0.0, le=10.0)] | None = Field(
        None,
        description="Estimated KL divergence from the 16-bit model at most, in nats a token; the "
        "smallest mix is chosen.",
    )
    types: Annotated[tuple[Literal[MIXED_TYPES], ...], Field(min_length=1)] | None = Field(  # type: ignore[valid-type]
        None,
        description="gguf: the types a part may get; default: "
        + ", ".join(DEFAULT_MIXED_TYPES)
        + ", those that fit its width. awq, gptq: the scheme, or 16 bits.",
    )
    WINDOW: ClassVar[int] = 256
    windows: Positive = Field(
        1, description="Windows of 256 tokens of the calibration text that are measured on."
    )

    @model_validator(mode="after")
    def _one_aim(self) -> Mixed:
        if (self.budget_bpw is None) == (self.max_kl_divergence is None):
            raise ValueError("give one of budget_bpw and max_kl_divergence")
        return self


class Quantization(Section):
    """How the weights are made smaller."""

    method: Literal["gguf", "awq", "gptq", "bitsandbytes", "quanto", "hqq", "torchao", "none"] = (
        Field(
            "gguf",
            description="gguf: a llama.cpp type. awq, gptq: 4 or 8 bits for vLLM, tuned on "
            "calibration text. bitsandbytes, quanto, hqq, torchao: the engine transformers "
            "quantizes while it loads (bitsandbytes: vllm on a GPU too). none: 16-bit weights.",
        )
    )
    scheme: Literal[_ALL_SCHEMES] | None = Field(  # type: ignore[valid-type]
        None,
        description="gguf: the llama.cpp type, for example q4_0, q8_0 or q4_k_m. awq: w4a16. gptq: "
        "w4a16, w8a16, or w8a8 (SmoothQuant, then GPTQ). bitsandbytes: nf4 or int8. quanto: int8, "
        "int4, int2 or float8. hqq: int8, int4, int3 or int2. torchao: int8 or int4.",
    )
    bits: Literal[4, 8] | None = Field(
        None, description="awq, gptq: bits per weight, another way to say w4a16 or w8a16."
    )
    tool: Literal["auto", "gguf", "llama-quantize", "llm-compressor", "autoawq", "auto-gptq"] = (
        Field(
            "auto",
            description="What quantizes. auto: the gguf package for q4_0 and q8_0, which needs no "
            "compiler, and llama-quantize for other llama.cpp types; for awq and gptq what is "
            "maintained and works on the device, which is llm-compressor.",
        )
    )
    imatrix: bool = Field(
        False,
        description="gguf: weigh rounding errors by an importance matrix of the calibration text.",
    )
    group_size: Annotated[int, Field(ge=-1, le=4096)] | None = Field(
        None,
        description="awq, gptq: input channels that share a scale, default 128; -1: all of a row. "
        "hqq, and torchao int4: the same, default 64. It must divide the input width of every "
        "quantized layer.",
    )
    zero_point: bool | None = Field(
        None, description="awq: asymmetric, with a zero point per group; default true."
    )
    sym: bool | None = Field(None, description="gptq: symmetric, no zero point; default true.")
    desc_act: bool | None = Field(
        None, description="gptq: columns in the order of their activations (act-order); slower."
    )
    damp_percent: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="gptq: share of the mean diagonal that is added to the Hessian."
    )
    clip: bool | None = Field(
        None, description="awq with autoawq: also search for the best clipping; much slower."
    )
    double_quant: bool | None = Field(
        None,
        description="bitsandbytes nf4 with the engine transformers: quantize the scales too, which "
        "saves 0.37 bits a weight.",
    )
    ignore: tuple[Text, ...] | None = Field(
        None,
        description="awq, gptq: layers left at 16 bits; names, or re:PATTERN. Default: lm_head.",
    )
    offload: bool | None = Field(
        None,
        description="awq, gptq with llm-compressor: keep one layer at a time on the GPU; slower, "
        "for models that do not fit it.",
    )

    mixed: Mixed | None = Field(
        None,
        description="gguf, awq, gptq: measure how sensitive each part of the model is, and choose "
        "its type by that. gguf: leave scheme out.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Quantization:
        """Fill in the scheme that awq and gptq make unless told otherwise; then look at it all."""
        if self.calibrated and self.scheme is None:
            object.__setattr__(self, "scheme", f"w{self.bits or 4}a16")  # frozen from here on
        problems = [*self._of_other_methods(), *self._of_the_method()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _of_other_methods(self) -> list[str]:
        """What is set and belongs to another method."""
        problems = [
            f"method {self.method} has {_named(what, table[self.method])}, not {value}"
            for what, table, value in (("scheme", SCHEMES, self.scheme), ("tool", TOOLS, self.tool))
            if value not in (None, "auto", *table[self.method])
        ]
        knobs = dict.fromkeys(knob for table in KNOBS.values() for knob in table)
        if self.mixed and self.method not in ("gguf", "awq", "gptq"):
            problems.append(f"method {self.method} has no mixed")
        foreign = [k for k in knobs if k not in KNOBS[self.method] and getattr(self, k)]
        if foreign:
            problems.append(f"method {self.method} has no {', '.join(foreign)}")
        if self.bits is not None and not (self.scheme or "").startswith(f"w{self.bits}"):
            problems.append(f"bits {self.bits} does not agree with scheme {self.scheme}")
        return problems

    def _of_the_method(self) -> list[str]:
        if self.while_loading and self.scheme is None:
            schemes = SCHEMES[self.method]
            return [f"scheme is missing: {', '.join(schemes[:-1])} or {schemes[-1]}"]
        if self.method == "gguf":
            return self._of_gguf()
        problems = self._of_mixed()
        if self.group_size == 0:
            problems.append("group_size is a number of channels, or -1 for a whole row")
        if self._per_channel and self.group_size not in (None, -1):
            problems.append(f"{self.scheme} has one scale per channel: leave group_size out")
        if self.double_quant and self.scheme != "nf4":
            problems.append(f"double_quant belongs to nf4, not to {self.scheme}")
        if self.while_loading and self.group_size == -1 and not self._per_channel:
            problems.append(f"{self.method} needs groups: give group_size, for example 64")
        if self.clip and self.tool != "autoawq":
            problems.append("clip needs tool: autoawq")
        if self.offload and self.tool not in ("auto", "llm-compressor"):
            problems.append("offload needs tool: llm-compressor")
        if self.tool == "autoawq" and self.zero_point is False:
            problems.append("autoawq makes weights with zero points only")
        if self.tool == "auto-gptq" and self.scheme == "w8a8":
            problems.append("auto-gptq makes w4a16 and w8a16; llm-compressor makes w8a8")
        return problems

    def _of_mixed(self) -> list[str]:
        """What a mix of checkpoint weights, some quantized and some not, cannot be."""
        if self.mixed is None:
            return []
        problems = []
        if self.mixed.types:
            problems.append(f"mixed.types belongs to gguf; {self.method} mixes scheme and 16 bits")
        if self._per_channel:
            problems.append(f"mixed measures weights alone, and {self.scheme} rounds activations")
        if self.tool not in ("auto", "llm-compressor"):
            problems.append("mixed needs tool: llm-compressor")
        return problems

    def _of_gguf(self) -> list[str]:
        if self.mixed:
            return self._of_mixed_gguf()
        if self.scheme is None:
            return ["scheme is missing, for example q4_0"]
        if self.imatrix and self.tool == "gguf":
            return ["the gguf tool cannot use an importance matrix; use llama-quantize"]
        if self.tool == "gguf" and self.scheme not in ("q4_0", "q8_0"):
            return [f"the gguf tool makes q4_0 and q8_0, not {self.scheme}"]
        if self.scheme in NEED_IMATRIX and not self.imatrix:
            return [f"{self.scheme} needs an importance matrix: set imatrix: true"]
        return []

    def _of_mixed_gguf(self) -> list[str]:
        problems = []
        if self.scheme is not None:
            problems.append("mixed chooses the types: leave scheme out")
        if self.tool == "gguf":
            problems.append("mixed needs tool: llama-quantize")
        return problems

    @property
    def label(self) -> str:
        """The scheme in words."""
        return f"{self.scheme or ''} mixed".strip() if self.mixed else str(self.scheme)

    @property
    def while_loading(self) -> bool:
        """Whether the engine quantizes: the bundle holds 16-bit weights."""
        return self.method in WHILE_LOADING

    @property
    def load(self) -> dict[str, Any] | None:
        """What an engine is told that quantizes while it loads; None for other methods.

        That is method, scheme, and of its knobs double_quant where it is true, group_size where
        there are groups.
        """
        if not self.while_loading:
            return None
        knobs = {name: value for name, value in self.knobs.items() if value not in (False, -1)}
        return {"method": self.method, "scheme": self.scheme, **knobs}

    @property
    def _per_channel(self) -> bool:
        return (self.method, self.scheme) in _PER_CHANNEL

    @property
    def calibrated(self) -> bool:
        """Whether it is tuned on the calibration set (an importance matrix is its own stage)."""
        return self.method in ("awq", "gptq")

    @property
    def reads_calibration(self) -> bool:
        """Whether a build of it reads the calibration set at all."""
        return self.calibrated or self.imatrix or self.mixed is not None

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs of the method with the values that hold: what is set, else the default."""
        table = KNOBS[self.method]
        held = {
            name: default if getattr(self, name) is None else getattr(self, name)
            for name, default in table.items()
        }
        if self._per_channel:
            held["group_size"] = -1
        return held


def _named(what: str, choices: tuple[str, ...]) -> str:
    """`no tool` or `the tools a, b`."""
    if not choices:
        return f"no {what}"
    return f"the {what}{'s' if len(choices) > 1 else ''} {', '.join(choices)}"


class Calibration(Section):
    """The calibration set, on which quantization is tuned; never the evaluation text."""

    text: Text | None = Field(
        None, description="A UTF-8 text file, or en or zh: a text that ships; default: en."
    )
    chats: Text | None = Field(
        None,
        description="A JSONL file, one conversation a line: {messages: [{role, content}]}; the "
        "model's chat template is applied.",
    )
    dataset: Repository | None = Field(
        None, description="A data set of the model hub, ORGANISATION/NAME; needs file."
    )
    revision: Revision | None = Field(
        None, description="Commit, tag or branch of the data set; the commit is recorded."
    )
    file: Text | None = Field(
        None,
        description="The file of the data set: .txt is text; .jsonl or .parquet have a column "
        "messages (chats) or text.",
    )
    samples: Positive = Field(32, description="Number of samples that are used.")
    length: Annotated[int, Field(ge=64, le=131072)] = Field(512, description="Tokens per sample.")

    @model_validator(mode="after")
    def _one_set(self) -> Calibration:
        given = [name for name in ("text", "chats", "dataset") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of text, chats, dataset (found {', '.join(given)})")
        check_dataset(self.dataset, self.file, self.revision)
        return self
