# Everything a developer or a first-time user types. Each target sets itself up: no step before.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JSON ?=
KEEP ?=
TESTS ?=
MINUTES ?= 10
SEED ?=
SEEDS ?= 100
PLANTED ?=
MODELS ?= demo
# What `make test` runs with shorter waits.
TRUE_LENGTH := tests/integration/test_fault_poison.py tests/e2e/test_random_faults.py \
  tests/integration/test_fault_network.py::test_a_controller_away_for_a_while_hears_everything_once

.DEFAULT_GOAL := help
.PHONY: help setup venv demo test test-slow faults sim test-systemd check fix proto docs migration clean

SETUP = PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' sh tools/setup.sh

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: ## Create .venv and install what is missing (TORCH_INDEX=URL of PyTorch's CPU wheels, PYTHON=python3.12)
	@$(SETUP) dev broker

venv:
	@$(SETUP) dev

demo: ## The main job end to end on this machine (JSON=FILE writes the figures, KEEP=1 leaves it running)
	@$(SETUP) demo broker
	@$(PY) -m examples.demo $(if $(JSON),--json '$(JSON)') $(if $(KEEP),--keep)

test: setup ## Run the tests (TESTS='tests/unit -k ladder' for some of them)
	@$(PY) -m pytest $(TESTS)

test-slow: setup ## Fault tests at their true length: a controller away for a minute, hangs at the default limit
	@FAULT_AWAY_S=60 FAULT_HANG_S=20 $(PY) -m pytest $(TRUE_LENGTH) $(TESTS)

test-systemd: setup ## Boot a container with the agent as a service (root; debootstrap, systemd-container)
	@LIGHTERMAN_TEST_SYSTEMD=1 $(PY) -m pytest tests/systemd $(TESTS)

faults: setup ## Minutes of random faults over the demo's fleet (SEED=7 plays a run again, MINUTES=10, JSON=FILE, MODELS=digits)
	@$(PY) -m tests.faults --minutes '$(MINUTES)' --models '$(MODELS)' $(if $(SEED),--seed '$(SEED)') $(if $(JSON),--json '$(JSON)')

sim: setup ## Rollouts with bad luck in virtual time (SEEDS=1000, SEED=7 plays one again, PLANTED=1, JSON=FILE)
	@PYTHONHASHSEED=0 $(PY) -m tests.simulation --seeds '$(SEEDS)' $(if $(SEED),--seed '$(SEED)') $(if $(PLANTED),--planted) $(if $(JSON),--json '$(JSON)')

check: venv ## Format, lint, types, import rules, stubs, migrations, docs
	@$(PY) -m tools.check

fix: venv ## Format and repair what ruff can repair
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format --quiet .

proto: venv ## Generate the protocol stubs and the descriptor golden file
	@$(PY) -m tools.stubs

docs: venv ## Regenerate docs/reference, the dashboard and the chart's copies from the code
	@$(PY) -m tools.check_docs --write
	@$(PY) -m tools.dashboard --write
	@$(PY) -m tools.check_helm --write

migration: venv ## Make a migration from the tables (m='add x to y')
	@test -n "$(m)" || { echo "error: say what it does: make migration m='add x to y'" >&2; exit 2; }
	@$(PY) -m tools.check_migrations --make '$(m)'

clean: ## Remove caches and build outputs; leaves .venv alone
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
