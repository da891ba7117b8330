# Every target makes .venv when it is missing; all installing goes through the one rule below.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo up test test-viewers check fuzz bench bench-assembly bench-ingest bench-node bench-patches bench-results clean
demo: $(VENV)/.installed-run
	@$(BIN)/pennode demo $(ARGS)

up: $(VENV)/.installed-run
	@$(BIN)/pennode up $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

# Opens results of ours in OHIF, from npm, in Chromium, and looks at the pixels. Leaves the README's picture in out/.
test-viewers: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m viewers tests/viewers $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fuzzes every target for half a minute, or as ARGS says, and then runs the tests that take long.
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)
	$(BIN)/python -m pytest -m long

bench: bench-node bench-ingest bench-assembly bench-patches bench-results
ifneq ($(and $(filter bench,$(MAKECMDGOALS)),$(ARGS)),)
$(error ARGS goes to one bench, each has switches of its own: make bench-node, bench-ingest, bench-assembly, bench-patches or bench-results ARGS="...")
endif
bench-node: $(VENV)/.installed-test
	@$(BIN)/python -m tests.bench $(ARGS)

bench-ingest: $(VENV)/.installed-test
	@$(BIN)/python -m tests.bench_ingest $(ARGS)

bench-assembly: $(VENV)/.installed-test
	@$(BIN)/python -m tests.bench_assembly $(ARGS)

bench-patches: $(VENV)/.installed-test
	@$(BIN)/python -m tests.bench_patches $(ARGS)

bench-results: $(VENV)/.installed-test
	@$(BIN)/python -m tests.bench_results $(ARGS)

clean:
	rm -rf $(VENV) out build *.egg-info

# `run` is what serving needs; any other word is an extra of pyproject.toml. Debian without python3-venv cannot put pip
# into a new environment by itself; the pip outside can.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "installing into $(VENV) ($*)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pennode needs Python 3.11 or newer: make PYTHON=python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.$(if $(filter-out run,$*),[$*])'
	@touch $@
.PRECIOUS: $(VENV)/.installed-%
