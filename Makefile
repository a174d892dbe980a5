# Two commands set a bare clone up:   make run_glue   and   make test.   `make help` lists the rest.
#
# Needs Python 3.10 to 3.13, make, and a package index that pip can reach. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip

# Small models on few cores: more threads than one only wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY = 1

# ---- the two commands ---------------------------------------------------------

.PHONY: run_glue
run_glue: $(VENV)/ready ## set up .venv and trace the run_glue scenario
	$(BIN)/python -m minitrainer.trace run_glue $(ARGS)

.PHONY: test
test: $(VENV)/ready-test ## set up .venv and run the tests (about a quarter of an hour on two cores)
	$(BIN)/python -m pytest -n 2 $(ARGS)

# ---- environments: a stamp is written last, so a broken install is made again -----

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "minitrainer needs Python 3.10 to 3.13, not %d.%d: make PYTHON=python3.12 …" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python has no venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(VENV)/bin/python pyproject.toml setup.py constraints.txt minitrainer/trace/_native.c
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,docs,browser,search,reports]'
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# ---- checks -------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/ready-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: book
book: $(VENV)/ready-docs ## check the chapters: code, traces, claims, questions, names; run their blocks and compare
	$(BIN)/python -m minitrainer.book check $(PAGES)

.PHONY: site
site: $(VENV)/ready-docs ## build the docs site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: wheel
wheel: $(VENV)/ready-test ## build the wheel, install it into an empty environment, run run_glue there
	PYTHON=$(BIN)/python tests/wheel.sh

# ---- heavier proofs: one target each ---------------------------------------------

REFERENCE = $(BIN)/python -m minitrainer.trace upstream run --trust-checkpoints 4.31.0

# A test that takes twenty minutes hangs, and has failed (pyproject.toml); but these take as long as they are asked to.
LONG := -o faulthandler_timeout=0

.PHONY: traces
traces: $(VENV)/ready ## record the specification anew from the real 4.31.0
	$(BIN)/python -m minitrainer.trace.specification

.PHONY: atlas
atlas: $(VENV)/ready ## what changed at each milestone of upstream, in every flow scenario (a quarter of an hour)
	$(BIN)/python -m minitrainer.trace.atlas

.PHONY: book-traces
book-traces: $(VENV)/ready-test ## record anew what only the book shows (two minutes); ARGS="NAME …" for some of it
	$(BIN)/python -m minitrainer.book.recordings $(ARGS)

.PHONY: shapes
shapes: $(VENV)/ready-test ## 10,000 random run shapes: expected events against the real 4.31.0 (half an hour)
	MINITRAINER_SHAPES=10000 MINITRAINER_SEED=$${SEED:-1} $(REFERENCE) -m pytest $(LONG) -s -q tests/trace/test_expected.py

.PHONY: kill-points
kill-points: $(VENV)/ready-test ## kill a recording process at 200 random points: nothing completed may be lost (a quarter of an hour)
	MINITRAINER_KILL_POINTS=$${POINTS:-200} $(BIN)/python -m pytest $(LONG) -q tests/trace/test_recorder.py tests/trace/test_kill_points.py -k killed

.PHONY: parity-long
parity-long: $(VENV)/ready-test ## 10,000 drawn runs, ours against the real 4.31.0; interrupt and go on as you like (an hour)
	$(BIN)/python -m tests.parity.search --examples $${MINITRAINER_EXAMPLES:-10000} $(ARGS)

.PHONY: gpu
gpu: $(VENV)/ready-test ## on a machine with CUDA cards: parity, trace, what the cards say, speed (about half an hour)
	MINITRAINER_GPU_FACTS=$${OUT:-runs/gpu} $(BIN)/python -m pytest $(LONG) -m gpu -q tests/gpu
	$(BIN)/python -m tests.benchmarks.gpu_speed --json $${OUT:-runs/gpu}/speed.json
	$(BIN)/python -m tests.benchmarks.gpu_trace_cost --json $${OUT:-runs/gpu}/trace-cost.json

# ---- housekeeping ---------------------------------------------------------------

.PHONY: clean
clean: ## remove the environment, builds, caches and runs
	rm -rf $(VENV) dist build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis minitrainer.egg-info
	rm -f minitrainer/trace/_native*.so

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z_-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22
