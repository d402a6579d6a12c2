"""What share of a GPU's bandwidth and arithmetic llama.cpp reaches: the constants of `recommend`.

    python gpu_decode.py SOURCE --bandwidth 3350 --tflops 989 [--work FOLDER] [--only build]

Needs an NVIDIA GPU, nvcc, cmake, and the packages gguf and numpy; no network and no model. SOURCE
is llama.cpp's source (vendor/llama.cpp of the pinned llama-cpp-python release). It is compiled for
this GPU; models of random weights in the shape of Llama 3.1 8B with half of its layers, and of the
demo model, are written, quantized and timed by `llama-bench`. Weights of any value take the same
time. `--bandwidth` (10^9 bytes/s) and `--tflops` (16 bits, without sparsity) are the data sheet's.

Prints one JSON document. Decoding reads all weights once a token, hence
    share of the bandwidth = bytes of the weights x (tok/s of decoding) / bandwidth
    share of the arithmetic = 2 x parameters x (tok/s of a prompt) / arithmetic
The embedding is not counted: of that a token reads one row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native",
    "-DGGML_CUDA_FA=OFF", "-DGGML_CUDA_NCCL=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip
"""Without flash attention: its kernels are most of the compile, and few tokens are attended to."""
TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
PROMPT, ANSWER, REPEATS = 512, 128, 5


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    words: int


LARGE = Shape("llama-3.1-8b with 16 of 32 layers", 16, 4096, 14336, 32, 8, 128256)
SMALL = Shape("smollm2-135m", 30, 576, 1536, 9, 3, 49152)


def build(source: Path, folder: Path) -> None:
    steps = (
        ["cmake", "-S", str(source), "-B", str(folder), *SETTINGS],
        ["cmake", "--build", str(folder), "-j", str(os.cpu_count()), "--target", "llama-bench",
         "llama-quantize"],
    )  # fmt: skip
    for argv in steps:
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def write_random(shape: Shape, path: Path) -> None:
    """A model of random 16-bit weights, without a vocabulary's words."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.words)
    writer.add_tokenizer_model("none")
    writer.add_file_type(1)
    few = numpy.random.default_rng(1).normal(0, 0.02, 1 << 22).astype(numpy.float16)

    def add(name: str, *size: int) -> None:
        writer.add_tensor(name, numpy.resize(few, size))

    kv = shape.width // shape.heads * shape.kv_heads
    add("token_embd.weight", shape.words, shape.width)
    add("output.weight", shape.words, shape.width)
    ones = numpy.ones(shape.width, numpy.float32)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", ones)
        for part, rows in (("q", shape.width), ("k", kv), ("v", kv), ("output", shape.width)):
            add(f"{block}attn_{part}.weight", rows, shape.width)
        add(f"{block}ffn_gate.weight", shape.inner, shape.width)
        add(f"{block}ffn_up.weight", shape.inner, shape.width)
        add(f"{block}ffn_down.weight", shape.width, shape.inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def timed(bench: Path, model: Path) -> dict[str, Any]:
    """llama-bench's own figures: size and parameters of the model, tok/s of prompt and answer."""
    argv = [str(bench), "-m", str(model), "-ngl", "99", "-p", str(PROMPT), "-n", str(ANSWER),
            "-r", str(REPEATS), "-o", "json"]  # fmt: skip
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    rows = json.loads(out)
    prompt = next(row for row in rows if row["n_prompt"])
    answer = next(row for row in rows if row["n_gen"])
    return {
        "bytes": answer["model_size"],
        "parameters": answer["model_n_params"],
        "prompt_tok_s": prompt["avg_ts"],
        "answer_tok_s": answer["avg_ts"],
        "answer_sd": answer["stddev_ts"],
        "gpu": answer.get("gpu_info"),
    }


def measure(folder: Path, bandwidth: float, tflops: float) -> dict[str, Any]:
    found: dict[str, Any] = {"bandwidth_gb_s": bandwidth, "tflops": tflops, "models": []}
    bench, quantize = (folder / "build" / "bin" / n for n in ("llama-bench", "llama-quantize"))
    for shape in (SMALL, LARGE):
        source = folder / "f16.gguf"
        write_random(shape, source)
        for kind in TYPES:
            model = source if kind == "f16" else folder / f"{kind}.gguf"
            if kind != "f16":
                # without --pure the output layer gets more bits, as it does in real files
                argv = [str(quantize), str(source), str(model), kind, str(os.cpu_count())]
                subprocess.run(argv, check=True, capture_output=True)
            row = timed(bench, model)
            bits = 8 * row["bytes"] / row["parameters"]
            head = shape.words * shape.width  # the embedding: one row a token
            read = row["bytes"] * (1 - head / row["parameters"])
            computed = 2 * (row["parameters"] - head)
            row |= {
                "shape": shape.name,
                "type": kind,
                "bits_per_weight": round(bits, 2),
                "share_of_bandwidth": round(read * row["answer_tok_s"] / bandwidth / 1e9, 3),
                "share_of_arithmetic": round(computed * row["prompt_tok_s"] / tflops / 1e12, 3),
                "step_ms": round(1000 / row["answer_tok_s"], 3),
            }
            print({k: row[k] for k in ("shape", "type", "share_of_bandwidth", "share_of_arithmetic",
                                       "step_ms", "answer_sd")}, flush=True)  # fmt: skip
            found["models"].append(row)
            if kind != "f16":
                model.unlink()
        source.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="llama.cpp's source")
    parser.add_argument("--bandwidth", type=float, required=True, help="10^9 bytes/s")
    parser.add_argument("--tflops", type=float, required=True, help="16 bits, 10^12 per second")
    parser.add_argument("--work", type=Path, default=Path("gpu-decode"), help="folder to work in")
    parser.add_argument("--only", choices=["build"], help="compile, and stop")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build(options.source, options.work / "build")
    if options.only != "build":
        print(json.dumps(measure(options.work, options.bandwidth, options.tflops), indent=1))


if __name__ == "__main__":
    main()
