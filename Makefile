# deployer: `make demo` shows it all, `make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEPLOYER := $(BIN)/deployer
export DEPLOYER_HOME ?= $(CURDIR)/.deployer
export UV_CACHE_DIR ?= $(DEPLOYER_HOME)/cache/uv
DEMO := recipes/smollm2-q4_0.yaml
# Tests whose names and assertions were prepared once start sooner the next time.
unexport PYTHONDONTWRITEBYTECODE
# PACKAGE=PROGRAM
DEBIAN := skopeo=skopeo umoci=umoci buildah=buildah docker-registry=docker-registry systemd=systemd-analyze iproute2=ip openssl=openssl docker-compose=docker-compose prometheus=promtool

.PHONY: help setup tools demo check test test-faults soak loadtest bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## make .venv with .venv/bin/deployer

$(VENV)/.ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; \
	set PYTHON=... to a Python 3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --editable '.[dev]'
	$(BIN)/python -m compileall -q deployer
	@touch $@

demo: setup  ## build, serve and load-test a real model, then stop the server
	@set -e; \
	$(DEPLOYER) build $(DEMO); \
	$(DEPLOYER) serve smollm2-q4_0 --set serve.port=0 --detach --name demo; \
	trap '$(DEPLOYER) stop demo' EXIT; \
	$(DEPLOYER) loadtest --server demo

check: setup  ## lint, types, import contracts and unit tests, in under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n auto --dist worksteal -p no:locust -p no:anyio -p no:schemathesis -m "not integration" tests/unit tests/contract

tools:  ## install the Debian programs that check what `deployer export` writes; needs root
	@missing=; for each in $(DEBIAN); do command -v $${each#*=} >/dev/null || missing="$$missing $${each%=*}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing >/dev/null; \
	  then :; else echo "not installed:$$missing; tests that need them are skipped" >&2; fi; fi

test: check tools  ## everything, real engines included
	$(BIN)/pytest -m "integration and not faults"

test-faults: setup  ## thousands of broken inputs, kills and interrupted builds; takes long
	$(BIN)/pytest -m faults tests/faults tests/integration

soak: setup  ## an hour of steady load on a deployment, with memory and latency over time
	$(BIN)/pytest -m soak --timeout 7200 tests/faults

loadtest: setup  ## load-test the running server: ENDPOINT= PROFILE= USERS= RATE= DURATION= TRIALS= TRACE=
	@$(DEPLOYER) loadtest $(if $(ENDPOINT),--endpoint $(ENDPOINT)) $(if $(PROFILE),--profile $(PROFILE)) \
	$(if $(USERS),--users $(USERS)) $(if $(RATE),--rate $(RATE)) $(if $(DURATION),--duration $(DURATION)) \
	$(if $(TRIALS),--trials $(TRIALS)) $(if $(TRACE),--trace $(TRACE))

bench: setup  ## measure deployer against the bare tools; BENCH=llama.cpp, vllm, quantizers, scoring, mixed or gateway
	$(BIN)/python tests/bench/bench.py $(BENCH)

clean:  ## delete .venv and all that was built
	rm -rf $(VENV) $(DEPLOYER_HOME)
