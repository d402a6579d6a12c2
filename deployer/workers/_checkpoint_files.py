"""Files of a checkpoint: what both generations of transformers can read, and what is kept as is.

transformers 4 looks for RoPE's theta in `rope_theta` and silently uses 10000 where it finds none;
transformers 5 writes it below `rope_parameters`. Here it always stands in both places.
"""

import json
import struct
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from _protocol import WorkerError

KEPT = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges*", "*.model", "*.tiktoken", "generation_config.json", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip
"""Copied byte for byte: the quantized model answers with the same tokens and template."""
WRITTEN = ("config.json", "*.safetensors", "model.safetensors.index.json")
QUANTIZED_SUFFIXES = (".qweight", ".weight_scale")
"""A layer with such a tensor is quantized (AWQ and GPTQ; compressed-tensors)."""


def read_config(checkpoint):
    """The decoded config.json; refuses a model that is quantized already."""
    try:
        config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"{checkpoint} has no usable config.json: {error}",
            "A checkpoint is a folder with config.json, *.safetensors and a tokenizer.",
        ) from error
    if "quantization_config" in config:
        raise WorkerError(
            "the checkpoint is quantized already", "Name the original 16-bit checkpoint."
        )
    return config


def rope_theta(config):
    """RoPE's theta of a decoded config; None where it has none, or one for each kind of layer."""
    text = _text(config)
    parameters = text.get("rope_parameters") or {}
    theta = text.get("rope_theta", parameters.get("rope_theta"))
    return None if theta is None else float(theta)


def with_both_thetas(config):
    """A copy of `config` that transformers 4 and 5 both read with the same RoPE."""
    config = json.loads(json.dumps(config))
    text, theta = _text(config), rope_theta(config)
    if theta is None:
        return config
    parameters = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    text["rope_theta"] = theta
    text["rope_parameters"] = {**parameters, "rope_type": kind, "rope_theta": theta}
    if kind != "default":
        text.setdefault("rope_scaling", {**parameters, "rope_type": kind})
    return config


def check_theta(config, loaded):
    """Raise WorkerError where a loaded model's RoPE theta is not the one of `config`.

    `loaded` is the configuration object of the model, of transformers 4 or 5.
    """
    wanted, got = rope_theta(config), rope_theta(loaded.to_dict())
    if wanted != got:
        raise WorkerError(
            f"the library read RoPE's theta as {got}; the checkpoint says {wanted}",
            "Its weights would be tuned for another model: use tool: llm-compressor.",
        )


@contextmanager
def for_transformers_4(checkpoint):
    """A temporary folder with the checkpoint as transformers 4 reads it; weights are links."""
    source = Path(checkpoint).resolve()
    config = with_both_thetas(read_config(source))
    config.setdefault("torch_dtype", config.get("dtype", "bfloat16"))
    with TemporaryDirectory(prefix="deployer-checkpoint-") as name:
        folder = Path(name)
        for path in source.iterdir():
            if path.name not in ("config.json", "tokenizer_config.json"):
                (folder / path.name).symlink_to(path)
        write_json(folder / "config.json", config)
        if (source / "tokenizer_config.json").is_file():
            text = (source / "tokenizer_config.json").read_text(encoding="utf-8")
            write_json(folder / "tokenizer_config.json", older_tokenizer(json.loads(text)))
        yield folder


def older_tokenizer(config):
    """A tokenizer_config.json of transformers 5 in the words of transformers 4."""
    config = dict(config)
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config.setdefault("additional_special_tokens", config.pop("extra_special_tokens"))
    return config


def finish(source, out, dtype, tied):
    """Complete a quantizer's output folder; gives the names of the quantized layers.

    The source's config.json is kept, and gets only what quantizing changed: the quantization
    settings, the type of what is left at 16 bits, and whether the embeddings are still tied.
    """
    source, out = Path(source), Path(out)
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    layers = quantized_layers(out)
    if not written.get("quantization_config") or not layers:
        raise WorkerError("the quantizer left no layer quantized", "The log holds its output.")
    config = with_both_thetas(read_config(source))
    config["quantization_config"] = written["quantization_config"]
    _text(config)["tie_word_embeddings"] = tied
    for key in ("torch_dtype", "dtype"):
        if key in config or key == "torch_dtype":
            config[key] = dtype
    for path in out.iterdir():
        if any(path.match(pattern) for pattern in WRITTEN):
            path.chmod(0o644)  # weights are written for their owner only
        else:
            path.unlink()
    write_json(out / "config.json", config)
    for pattern in KEPT:
        for path in source.glob(pattern):
            copyfile(path, out / path.name)
    return layers


def quantized_layers(folder):
    """Names of the layers whose weights are stored quantized in a folder of safetensors."""
    return sorted({
        name.removesuffix(suffix)
        for file in Path(folder).glob("*.safetensors")
        for name in tensor_names(file)
        for suffix in QUANTIZED_SUFFIXES
        if name.endswith(suffix)
    })  # fmt: skip


def tensor_names(path):
    """Names of the tensors of a safetensors file."""
    with Path(path).open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return [name for name in header if name != "__metadata__"]


def write_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _text(config):
    """The part of a config that describes the language model."""
    return config.get("text_config") or config
