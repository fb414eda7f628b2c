# The whole workflow. Everything lives in .venv; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What people write; model cards and records of benchmarks stay as programs wrote them.
MARKDOWN := README.md CONTRIBUTING.md CHANGELOG.md docs benchmarks/README.md \
	tests/shared/golden/README.md

.PHONY: demo test campaign peers few-peers check format bench wheel clean

demo: $(READY)
	$(BIN)/crate-mae demo --out runs/demo

# A process a core and at most four, as every test computes on one core; a process that has done its
# tests takes over some of another's.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Changed files through every door, and interrupted runs: MINUTES of it, the same for the same SEED.
MINUTES := 10
SEED := 0
campaign: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaign/campaign.py --minutes $(MINUTES) --seed $(SEED)

# The own test suites of timm and transformers on our models; said aloud where they cannot be had.
peers: $(READY)
	$(BIN)/python tools/peers/run.py all

# A part of them that takes about a minute.
few-peers: $(READY)
	$(BIN)/python tools/peers/run.py all --few

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mdformat --check $(MARKDOWN)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/project/test_imports.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/python tools/fill_docs.py
	$(BIN)/mdformat $(MARKDOWN)

bench: $(READY)
	status=0; $(BIN)/python benchmarks/targets.py || status=1; \
	$(BIN)/python benchmarks/rate_cost.py || status=1; exit $$status

wheel: $(READY)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist

# torch and its GPU libraries are several gigabytes: minutes the first time, nothing afterwards.
$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[dev]"
	@touch $(READY)
