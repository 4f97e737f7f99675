# What a person does by hand, one command each. `make demo` is the one to try first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-twin bench-mind bench-durable bench-faults bench-agents chaos load notebooks lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(STAMP) ## Set everything up in .venv, from the lock file

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11 install")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP) ## Run the main job on a local swarm: three workloads, verified
	@$(BIN)/swarm demo

test: $(STAMP) ## Run the tests
	PYTHONHASHSEED=0 $(BIN)/python -m pytest

lint: $(STAMP) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python -m pytest tests/benchmarks/ --benchmark-only

bench-twin: $(STAMP) ## Policies side by side in the twin, how fast it is, how faithful: SEEDS=5 LIMIT=300 OUT=build/twin
	@mkdir -p $(or $(OUT),build/twin)
	$(BIN)/python -m swarm.twin.bench --seeds $(or $(SEEDS),5) --json $(or $(OUT),build/twin)/policies.json --picture $(or $(OUT),build/twin)/policies.html
	$(BIN)/python -m swarm.twin.bench scale --limit $(or $(LIMIT),300) --json $(or $(OUT),build/twin)/scale.json --picture $(or $(OUT),build/twin)/scale.html
	$(BIN)/python -m swarm.twin.bench scale --shape layered --workers 10 --workers 100 --workers 1000 --tasks 1000 --tasks 10000 --tasks 50000 --limit $(or $(LIMIT),300) --json $(or $(OUT),build/twin)/scale-layered.json --picture $(or $(OUT),build/twin)/scale-layered.html
	$(BIN)/python -m pytest tests/benchmarks/twin --benchmark-only

bench-mind: $(STAMP) ## What the mind learns and what it gains: TRACES=folder/of/wfformat SEEDS=5 RUNS=3 OUT=build/mind
	$(BIN)/python -m tests.benchmarks.mind.learning_curve $(TRACES) --json $(or $(OUT),build/mind)/learning-curve.json --picture $(or $(OUT),build/mind)/learning-curve.png
	$(BIN)/python -m tests.benchmarks.mind.regret --seeds $(or $(SEEDS),5) --json $(or $(OUT),build/mind)/cold-start.json --picture $(or $(OUT),build/mind)/cold-start.png
	$(BIN)/python -m tests.benchmarks.mind.workflows $(TRACES) --json $(or $(OUT),build/mind)/workflows.json
	$(BIN)/python -m tests.benchmarks.mind.cholesky --runs $(or $(RUNS),3) --json $(or $(OUT),build/mind)/cholesky.json
	$(BIN)/python -m tests.benchmarks.mind.inputs_on_one --runs $(or $(RUNS),3) --json $(or $(OUT),build/mind)/inputs-on-one.json

bench-durable: $(STAMP) ## What durable runs cost, with and without in turn: ROUNDS=5 TASKS=200
	$(BIN)/python -m tests.benchmarks.durable --rounds $(or $(ROUNDS),5) --tasks $(or $(TASKS),200)

bench-faults: $(STAMP) ## How soon a killed worker is back; the fault detector alone, 1,000 workers for a day and 10 for sixty hours: OUT=build/faults
	$(BIN)/python -m tests.benchmarks.faults.restart --rounds $(or $(ROUNDS),3) --json $(or $(OUT),build/faults)/restart.json
	$(BIN)/python -m tests.benchmarks.faults.detector --json $(or $(OUT),build/faults)/detector.json --picture $(or $(OUT),build/faults)/detector.png

bench-agents: $(STAMP) ## Channels beside their peers, agents, the ledger, blind experiments: ROUNDS=3 OUT=build/agents
	$(BIN)/python -m tests.benchmarks.channels.rings --json $(or $(OUT),build/agents)/rings.json --picture $(or $(OUT),build/agents)/rings.png
	$(BIN)/python -m tests.benchmarks.channels.stations --json $(or $(OUT),build/agents)/stations.json
	$(BIN)/python -m tests.benchmarks.agents.messages --rounds $(or $(ROUNDS),3) --json $(or $(OUT),build/agents)/messages.json
	$(BIN)/python -m tests.benchmarks.agents.idle --json $(or $(OUT),build/agents)/idle.json
	$(BIN)/python -m tests.benchmarks.ledger.elastic --json $(or $(OUT),build/agents)/elastic.json
	$(BIN)/python -m tests.benchmarks.optimization --rounds $(or $(ROUNDS),3) --json $(or $(OUT),build/agents)/optimization.json

chaos: $(STAMP) ## Faults on real processes and in the twin, always new ones: MINUTES=10 KIND=all SEED=1 REPLAY=file
	PYTHONHASHSEED=0 $(BIN)/python -m tests.chaos.rounds --minutes $(or $(MINUTES),10) --kind $(or $(KIND),all) $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY)) --out $(or $(OUT),build/chaos)

load: $(STAMP) ## Load test: AGENTS=32 DURATION=300
	$(BIN)/python tests/load_test.py --agents $(or $(AGENTS),32) --duration $(or $(DURATION),300)

notebooks: $(STAMP) ## Execute the notebooks
	$(BIN)/python -m pytest tests/processes/test_notebooks.py

lock: ## Renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --extra dev --extra notebooks \
		--generate-hashes --no-header --no-annotate --quiet pyproject.toml --output-file requirements.lock

clean: ## Remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .benchmarks .hypothesis build dist
