#!/usr/bin/env bash
# Output tokens a second of one server and of two behind vllm-router, with cores of their own and
# with shared ones; the table of docs/scaling.md. Needs the bundle smollm2-q4_0, two cores and a
# quiet machine; takes some three minutes:
#   tests/bench/by_hand/replicas.sh
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
export DEPLOYER_HOME="${DEPLOYER_HOME:-$PWD/.deployer}"
BUNDLE=smollm2-q4_0 FIRST=18810
SETTINGS=(--set serve.server=xllamacpp --set serve.context=512 --set serve.parallel=8)
work=$(mktemp -d) router=

finish() {
    [ -z "$router" ] || kill "$router" 2>/dev/null || true
    for name in alone smollm2-q4-0-1 smollm2-q4-0-2 shared-1 shared-2; do
        deployer stop "$name" >/dev/null 2>&1 || true
    done
    rm -rf "$work"
}
trap finish EXIT

measure() {  # PORT, what it is
    deployer loadtest --endpoint "http://127.0.0.1:$1" --profile concurrent --users 8 --duration 12 \
        --set loadtest.warmup=3 --set loadtest.prompt_tokens=64 --set loadtest.output_tokens=64 \
        --json 2>/dev/null |
        python -c "import json, sys
stage = json.load(sys.stdin)['stages'][0]
print(f\"$2: {stage['throughput']['output_tokens_per_s']:.1f} output tok/s, {stage['requests']['failed']} failed\")"
}

route() {
    VLLM_ROUTER=$(deployer toolchain install vllm-router --json 2>/dev/null |
        python -c 'import json, sys; print(json.load(sys.stdin)["path"])')/env/bin/vllm-router
    export VLLM_ROUTER
    sh "$work/out/start-router.sh" >"$work/router.log" 2>&1 &
    router=$!
    for _ in $(seq 60); do
        python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$FIRST/v1/models')" 2>/dev/null && return
        sleep 0.5
    done
    cat "$work/router.log" >&2
    exit 1
}

deployer export "$BUNDLE" --to vllm-router --replicas 2 --port "$FIRST" --estimate -o "$work/out" >/dev/null
deployer serve "$BUNDLE" --detach --name alone "${SETTINGS[@]}" --set "serve.port=$FIRST" >/dev/null
measure "$FIRST" "one server with both cores"
deployer stop alone >/dev/null

sh "$work/out/start-replicas.sh" "${SETTINGS[@]}" >/dev/null
measure $((FIRST + 1)) "one server with one core"
route
measure "$FIRST" "two servers with a core each, behind the router"
kill "$router"; wait "$router" 2>/dev/null || true
deployer stop smollm2-q4-0-1 >/dev/null; deployer stop smollm2-q4-0-2 >/dev/null

for number in 1 2; do
    deployer serve "$BUNDLE" --detach --name "shared-$number" "${SETTINGS[@]}" \
        --set "serve.port=$((FIRST + number))" >/dev/null
done
route
measure "$FIRST" "two servers that share both cores, behind the router"
