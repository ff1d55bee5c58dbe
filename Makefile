# Two commands: `make compare` and `make test`. Each prepares what it needs; a second call skips that.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/compare
ARGS ?=

.PHONY: help compare bench test check format setup clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

compare: $(VENV)/.ready ## Rank eleven optimizers on real text (about 3 minutes); more in ARGS="..."
	$(BIN)/steepest compare --out $(OUT) $(ARGS)

bench: $(VENV)/.ready-peers ## Time one step of every optimizer against every peer (about half an hour)
	$(BIN)/python bench/step.py $(ARGS)

test: $(VENV)/.ready-dev ## Run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

check: $(VENV)/.ready-dev ## Lint, format, types, import floors and the fast laws, in under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Types beside the tests: reading torch for the first time takes mypy half a minute.
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m "not slow and not browser" tests/rooms tests/laws tests/schedules; \
	tests=$$?; wait $$types && exit $$tests

format: $(VENV)/.ready-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.ready-dev ## Prepare .venv, with everything development needs

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed, $(PYTHON) is another; say make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-peers: $(VENV)/.ready-dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[peers]'
	@touch $@

# timm is a peer in the tests; its own needs (torchvision) are not wanted, and not used.
$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps timm
	@touch $@
