"""What is checked before anything is done: source, device, formats, widths, memory."""

from __future__ import annotations

from deployer.engines import engine_named
from deployer.errors import PlanError
from deployer.planning.groups import check_group_size, check_shares
from deployer.planning.loading import check_loading
from deployer.planning.memory import check_memory
from deployer.planning.plan import Machine, Obstacle, ResolvedSource
from deployer.planning.shape import ModelShape
from deployer.planning.support import check_context, check_gpus, check_support
from deployer.quantizers import choose_quantizer
from deployer.recipe import Recipe

UNKNOWN_SHAPE = (
    "the model's dimensions are not known here; group sizes and memory are checked once it is "
    "fetched, if its architecture is one that deployer knows"
)


def device(recipe: Recipe, machine: Machine) -> str:
    """Where the engine computes: the recipe's word, or what `auto` means here (cpu or cuda)."""
    if recipe.target.device != "auto":
        return recipe.target.device
    checkpoints = engine_named(recipe.target.engine).format == "checkpoint"
    usable = checkpoints or recipe.serve.server == "llama-server"
    return "cuda" if machine.gpus and usable else "cpu"


def obstacles(recipe: Recipe, machine: Machine) -> tuple[Obstacle, ...]:
    """What this machine lacks for a recipe that is good in itself; known without a download."""
    if recipe.target.device != "cuda" or machine.gpus:
        return ()
    other = "; recipes/smollm2-awq.yaml is one" if recipe.target.engine == "vllm" else ""
    return (
        Obstacle(
            "target.device is cuda, and this machine shows no NVIDIA GPU",
            f"Build where there is one, or use a recipe for a CPU (target.device: cpu){other}. "
            "`deployer plan` shows what a machine with a GPU would do.",
        ),
    )


def check(recipe: Recipe, source: ResolvedSource) -> None:
    """The source suits the engine and the method; raises PlanError."""
    engine = engine_named(recipe.target.engine)
    on_gpu = engine.name == "llama.cpp" and recipe.target.device == "cuda"
    if on_gpu and recipe.serve.server != "llama-server":
        raise PlanError(
            "device cuda needs a llama-server that was built with CUDA",
            "Install one and set serve.server: llama-server, or set target.device: cpu.",
        )
    if engine.format == "checkpoint" and source.format == "gguf":
        raise PlanError(
            f"{engine.name} loads checkpoints, and the source is a GGUF file",
            "Name the original checkpoint as the source, or set target.engine: llama.cpp.",
        )
    if source.quantized and recipe.quantization.method != "none":
        raise PlanError(
            "the source is quantized already; quantizing it again would add one error to another",
            "Set quantization.method: none to serve it as it is, or start from 16-bit weights.",
        )


def check_shape(
    recipe: Recipe, shape: ModelShape | None, machine: Machine, size_bytes: int | None = None
) -> tuple[str, ...]:
    """The model's dimensions suit recipe and machine; gives the arithmetic as sentences.

    `shape` and `size_bytes` (of 16-bit weights) are None where they are not known yet. Raises
    PlanError.
    """
    where = device(recipe, machine)
    stored_as = _format(recipe, where)
    check_support(recipe, stored_as, where)
    if where == "cuda" and machine.gpus:
        check_gpus(recipe, stored_as, machine.gpus)
    check_loading(recipe, where)
    notes: tuple[str, ...] = ()
    checkpoints = engine_named(recipe.target.engine).format == "checkpoint"
    if checkpoints and shape is None:
        notes = (UNKNOWN_SHAPE,)
    elif checkpoints and shape is not None:
        vllm = recipe.serve.vllm
        check_context(recipe, shape)
        check_shares(shape, vllm.tensor_parallel, vllm.pipeline_parallel)
        check_group_size(recipe.quantization, shape, vllm.tensor_parallel)
    return (*notes, *check_memory(recipe, shape, machine, where, size_bytes))


def _format(recipe: Recipe, where: str) -> str:
    """How the weights will be stored; at 16 bits where the engine quantizes while it loads."""
    wanted = recipe.quantization
    if wanted.method == "none" or wanted.while_loading:
        return wanted.method
    return choose_quantizer(wanted, where).quantizer.format
