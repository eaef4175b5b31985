PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export OMP_NUM_THREADS ?= 1
# Tests that wait for Flower's processes leave their core to others: three workers on two cores.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(12, (3 * (os.cpu_count() or 2) + 1) // 2))")

.PHONY: run test quick test-all gpu lint docs rehearse versions clean

run: $(STAMP)
	$(BIN)/fedrobust run experiments/quickstart.toml

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Definitions, tables, rules by worked values, layers: under a minute.
quick: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) -q tests/test_spec.py tests/experiment/test_config.py \
		tests/test_layers.py tests/plugins/test_records.py tests/aggregation/test_aggregation_worked.py

# Every variant and campaign too: about an hour.
test-all: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m ""

# What a GPU is worth here, in 12 minutes: make gpu GPU="--budget 60"; --pretend without one.
gpu: $(STAMP)
	$(BIN)/python -m experiments.benchmarks.gpu $(GPU)

rehearse: $(STAMP)
	$(BIN)/python -m experiments.deploy.rehearse

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

versions:
	$(PYTHON) -m experiments.versions

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict -f experiments/docs/mkdocs.yml

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
