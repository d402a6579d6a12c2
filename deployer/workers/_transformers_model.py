"""A checkpoint in transformers, quantized while it is loaded; and what it then takes in memory.

`load` in a request says how: {method: bitsandbytes | quanto | hqq | torchao, scheme, double_quant?,
group_size?}, or null for the weights as they are. Which scheme runs where is decided when a recipe
is planned (planning/loading.py).
"""

import json
from pathlib import Path
from types import SimpleNamespace

from _checkpoint_text import last_line
from _protocol import WorkerError


def load_model(folder, load=None, dtype=None, device=None):
    """The model, ready to compute on `device` (cpu or cuda; None: cuda where there is one).

    `dtype` is that of activations and unquantized weights, None or "auto" for the checkpoint's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        "dtype": dtype or "auto",
        "local_files_only": True,
        "device_map": {"": 0} if device == "cuda" else "cpu",
    }
    try:
        if load and load["method"] in _CONFIGS:
            settings["quantization_config"] = _CONFIGS[load["method"]](
                load, _computed_in(folder, dtype), device
            )
        model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
        if load and load["method"] == "hqq":
            _quantize_hqq(model, load)
    except Exception as error:  # whatever the loader of this architecture or method raises
        raise WorkerError(
            f"transformers cannot load the model: {last_line(error)}",
            "The log says why: a damaged file, an unsupported format or too little memory.",
        ) from error
    return model


def _computed_in(folder, dtype):
    """The torch type that activations have."""
    import torch
    from transformers import AutoConfig

    if dtype in (None, "auto"):
        return AutoConfig.from_pretrained(folder, local_files_only=True).dtype or torch.float32
    return getattr(torch, dtype)


def _bitsandbytes(load, dtype, device):
    from transformers import BitsAndBytesConfig

    if load["scheme"] == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=load["scheme"],
        bnb_4bit_use_double_quant=load.get("double_quant", False),
        bnb_4bit_compute_dtype=dtype,
    )


def _quanto(load, dtype, device):
    from optimum.quanto.library.extensions.cpp import ext
    from transformers import QuantoConfig

    if device == "cpu":
        # It would compile this function in C++, into its own installation, when it is first used.
        ext._lib = SimpleNamespace(unpack=_unpack)
    return QuantoConfig(weights=load["scheme"])


def _unpack(packed, bits):
    """The values of 8 // `bits` rows that share a byte, the rows of the lowest bits first."""
    import torch

    return torch.cat([(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)])


def _torchao(load, dtype, device):
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    if load["scheme"] == "int8":
        return TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    size = load["group_size"]
    if device == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(quant_type=PrototypeInt4WeightOnlyConfig(group_size=size))
    # The format of torch's own kernel; the default one is of another library's.
    packing = "tile_packed_to_4d"
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=size, int4_packing_format=packing))


_CONFIGS = {"bitsandbytes": _bitsandbytes, "quanto": _quanto, "torchao": _torchao}
"""Method -> transformers' own description of it. Its loader for HQQ is gone from release 5."""


def _quantize_hqq(model, load):
    """Replace the matrices by HQQ's, one after the other; the output layer stays as it is."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    bits = int(load["scheme"].removeprefix("int"))
    settings = BaseQuantizeConfig(nbits=bits, group_size=load["group_size"], axis=1)
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    for name in names:
        linear = model.get_submodule(name)
        quantized = HQQLinear(
            linear, settings, compute_dtype=linear.weight.dtype, device=str(model.device)
        )
        model.set_submodule(name, quantized)


def in_memory(model, folder):
    """What the weights take in memory: {weights_bytes, parameters, bits_per_weight, types}.

    All tensors the model holds, scales and zero points too, over the number of weights in the
    checkpoint. `types` counts its matrices by the class of module that holds them.
    """
    size = sum(_sizes(model).values())
    count = _stored_weights(Path(folder))
    kinds = {}
    for module in model.modules():
        if not list(module.children()) and list(module.parameters(recurse=False)):
            kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
    return {
        "weights_bytes": size,
        "parameters": count,
        "bits_per_weight": round(8 * size / count, 4),
        "types": kinds,
    }


def _sizes(model):
    """Address -> bytes of every tensor; one that two modules share is counted once."""
    import torch

    found = {}
    seen = set()

    def take(value):
        """Tensors, and what the libraries keep beside them: quantization states, metadata."""
        if isinstance(value, torch.Tensor):
            take_tensor(value)
        elif isinstance(value, dict):
            for inner in value.values():
                take(inner)
        elif type(value).__name__ == "QuantState" and id(value) not in seen:
            seen.add(id(value))
            take(vars(value))

    def take_tensor(tensor):
        parts = getattr(tensor, "__tensor_flatten__", None)
        if parts and type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            for name in parts()[0]:
                take(getattr(tensor, name))
        else:
            found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        for name in ("quant_state", "SCB"):  # bitsandbytes: the scales hang on the weight
            take(getattr(tensor, name, None))

    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            take(tensor)
        for name in ("W_q", "meta"):  # HQQ
            take(getattr(module, name, None))
    return found


def _stored_weights(folder):
    """How many numbers the safetensors files of a 16-bit checkpoint hold."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                numbers = 1
                for length in entry["shape"]:
                    numbers *= length
                count += numbers
    return count
