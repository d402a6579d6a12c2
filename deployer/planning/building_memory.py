"""What a build will hold: the model that is quantized, the calibration set, what is scored."""

from __future__ import annotations

from deployer.planning.estimate import BYTES_AT_16_BITS, MemoryEstimate, Part, counted
from deployer.planning.plan import Machine
from deployer.planning.serving_memory import VLLM_GPU_PROCESS, engine_memory, with_vllm
from deployer.planning.shape import Linear, ModelShape
from deployer.recipe import Recipe

QUANTIZER_PROCESS = 1 << 30
"""Python with torch and transformers."""
QUANTIZING, SAMPLES, VALUES = "quantizing", "calibration", "a layer's values"
MAIN, GPU = "this machine's memory", "the GPU's memory"
OFFLOADING = ("auto", "llm-compressor")
_FLOAT32 = 4


def building_memory(
    recipe: Recipe, shape: ModelShape, machine: Machine, device: str
) -> tuple[MemoryEstimate, ...]:
    """What quantizing takes of each place it needs, and scoring the 16-bit model.

    Empty for llama.cpp: its tools map files or read them piece by piece.
    """
    if recipe.target.engine == "llama.cpp":
        return ()
    estimates = [_scoring(recipe, shape, machine, device)]
    if recipe.quantization.calibrated:
        estimates = [*_quantizing(recipe, shape, machine, device), *estimates]
    return tuple(estimates)


def building_hint(recipe: Recipe, estimate: MemoryEstimate) -> str:
    """What would make an estimate of `building_memory` fit."""
    elsewhere = "Build on a larger machine and copy the bundle, or choose a smaller model."
    if estimate.purpose != QUANTIZING:
        return elsewhere
    samples = _samples_that_fit(recipe, estimate)
    if samples >= 1:
        return (
            f"It would fit with --set calibration.samples={samples}; a smaller calibration.length "
            "helps as well."
        )
    offload = recipe.quantization.knobs["offload"]
    if estimate.place == GPU and not offload and recipe.quantization.tool in OFFLOADING:
        return "Set quantization.offload: true to keep one layer at a time on the GPU."
    return elsewhere


def _samples_that_fit(recipe: Recipe, estimate: MemoryEstimate) -> int:
    """How many samples leave the rest enough room; 0 where none do."""
    grows = sum(part.size for part in estimate.parts if part.what in (SAMPLES, VALUES))
    room = grows - (estimate.needed - (estimate.there or 0))
    return recipe.calibration.samples * max(0, room) // max(1, grows)


def _quantizing(
    recipe: Recipe, shape: ModelShape, machine: Machine, device: str
) -> list[MemoryEstimate]:
    process = Part("process", QUANTIZER_PROCESS, "Python and torch")
    if device == "cpu":
        # The tools compute in 32 bits where a processor has no 16-bit arithmetic.
        parts = (_all_weights(shape, 32), *_work(recipe, shape, 32), process)
        return [MemoryEstimate(QUANTIZING, MAIN, parts, machine.memory_bytes)]
    weights = _all_weights(shape)
    # AutoAWQ moves one layer after the other to the GPU anyway.
    one_layer = recipe.quantization.knobs["offload"] or recipe.quantization.tool == "autoawq"
    held = _one_layer(shape) if one_layer else weights
    on_gpu = (held, *_work(recipe, shape, 16), Part("process", VLLM_GPU_PROCESS, "CUDA context"))
    return [
        MemoryEstimate(QUANTIZING, MAIN, (weights, process), _main_memory(machine, device)),
        MemoryEstimate(QUANTIZING, GPU, on_gpu, _gpu_memory(machine)),
    ]


def _scoring(recipe: Recipe, shape: ModelShape, machine: Machine, device: str) -> MemoryEstimate:
    """The 16-bit model in the engine, which compiles nothing for it."""
    wide = recipe.serve.transformers.dtype == "float32"
    weights = _all_weights(shape, 32 if wide else 16)
    purpose = "scoring the 16-bit model"
    if device == "cpu":
        buffers = engine_memory(with_vllm(recipe, eager=True), shape, device, weights.size).buffers
        parts = (weights, Part("buffers", buffers, recipe.target.engine))
        return MemoryEstimate(purpose, MAIN, parts, machine.memory_bytes)
    gpus = recipe.serve.vllm.tensor_parallel * recipe.serve.vllm.pipeline_parallel
    share = Part("weights", weights.size // gpus, f"{weights.arithmetic}, shared by {gpus} GPUs")
    process = Part("process", VLLM_GPU_PROCESS, "CUDA context")
    held = (share if gpus > 1 else weights, process)
    return MemoryEstimate(purpose, GPU, held, _gpu_memory(machine))


def _gpu_memory(machine: Machine) -> int | None:
    return machine.gpus[0].memory_bytes if machine.gpus else None


def _main_memory(machine: Machine, device: str) -> int | None:
    """None where the build cannot be on this machine anyway."""
    return None if device == "cuda" and not machine.gpus else machine.memory_bytes


def _all_weights(shape: ModelShape, bits: int = 16) -> Part:
    size = shape.parameters * bits // 8
    return Part("weights", size, f"{counted(shape.parameters)} x {bits} bits")


def _one_layer(shape: ModelShape) -> Part:
    """The largest layer, which alone lies on the GPU when the others are kept away."""
    size = sum(linear.weights * linear.experts for linear in _of_a_layer(shape))
    return Part("one layer", size * BYTES_AT_16_BITS, f"{counted(size)} x 16 bits")


def _work(recipe: Recipe, shape: ModelShape, bits: int) -> tuple[Part, Part]:
    """What is held beside the weights: the calibration set, and what one layer makes of it."""
    return _samples(recipe, shape, bits), _layer_work(recipe, shape, bits)


def _samples(recipe: Recipe, shape: ModelShape, bits: int) -> Part:
    """What goes into a layer and what comes out of it, for every token of the calibration set."""
    wanted = recipe.calibration
    size = 2 * wanted.samples * wanted.length * shape.hidden * bits // 8
    arithmetic = f"2 x {wanted.samples} x {wanted.length} tokens x {shape.hidden} x {bits} bits"
    return Part(SAMPLES, size, arithmetic)


def _layer_work(recipe: Recipe, shape: ModelShape, bits: int) -> Part:
    """GPTQ: a float32 Hessian for each matrix of a layer. AWQ: what goes into each matrix."""
    linears = _of_a_layer(shape)
    if recipe.quantization.method == "gptq":
        size = sum(linear.inputs**2 * _FLOAT32 * linear.experts for linear in linears)
        return Part("Hessians", size, f"inputs squared x 32 bits, {len(linears)} kinds of matrices")
    widths = sum({linear.inputs for linear in linears}) + shape.intermediate
    tokens = recipe.calibration.samples * recipe.calibration.length
    arithmetic = f"{tokens:,} tokens x {widths:,} x {bits} bits"
    return Part(VALUES, tokens * widths * bits // 8, arithmetic)


def _of_a_layer(shape: ModelShape) -> list[Linear]:
    """The matrices of the layer that has most weights."""
    inside = [linear for linear in shape.linears if linear.name != "lm_head"]
    if not inside:
        return []
    layers = {layer for linear in inside for layer in linear.layers}

    def weights(layer: int) -> int:
        return sum(x.weights * x.experts for x in inside if layer in x.layers)

    largest = max(sorted(layers), key=weights)
    return [linear for linear in inside if largest in linear.layers]
