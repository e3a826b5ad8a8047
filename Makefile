SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV ?= .venv
# The versions to install: constraints.txt or constraints-transformers4.txt.
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
# The Python of an environment with the other line of transformers.
OTHER ?=

# Where `make trust` notes what every bad input did, a JSON line per command.
TRUST_COUNTS ?= build/trust.jsonl

override VENV := $(abspath $(VENV))
BIN := $(VENV)/bin
FOLDERS := tcompress compress export evaluate

.PHONY: demo faults install install-transformers4 lint typecheck test test-line test-slow trust support wheel

# The main job on the embedded default: installs what it needs and runs everything in demo/.
demo:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[demo]'
	mkdir -p demo
	cd demo && $(BIN)/tcompress run --demo

install:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[dev]'

# transformers 4, and optimum-onnx, which needs it: whether its ORTModel answers as tcompress does.
install-transformers4: CONSTRAINTS = constraints-transformers4.txt
install-transformers4: install
	$(BIN)/python -m pip install -c $(CONSTRAINTS) optimum-onnx

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see the hook of an editable install that puts compress/, export/ and evaluate/ inside
# tcompress. Links under .typing/ lay the packages out as they are installed.
typecheck:
	mkdir -p .typing/tcompress
	ln -sfn $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard tcompress/*) $(wordlist 2,4,$(FOLDERS)))) .typing/tcompress/
	find .typing/tcompress -maxdepth 1 -xtype l -delete
	cd .typing && $(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p tcompress \
		| sed -E 's#^tcompress/(compress|export|evaluate)/#\1/#'

# A process per core: tests use one thread each, and time nothing.
test:
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

# Longer variations of what `make test` shows, which leaves them out.
test-slow:
	$(BIN)/python -m pytest -n auto -m slow $(PYTEST_ARGS)

# What looks at transformers, in one environment; with OTHER, checkpoints cross both ways, too.
test-line:
	$(if $(OTHER),TCOMPRESS_OTHER_PYTHON=$(abspath $(OTHER))) $(BIN)/python -m pytest \
		tests/families tests/tcompress/test_encoder.py tests/tcompress/test_embedder.py \
		tests/tcompress/test_pruned_checkpoints.py tests/compress/test_pruning.py \
		tests/compress/test_scoring.py tests/export/test_formats.py tests/export/test_interop.py \
		-n auto $(PYTEST_ARGS)

# Every bad input against every command that opens it, 10,000 fuzzed files, and a table of the faults.
trust: export TCOMPRESS_TEST_COUNTS := $(abspath $(TRUST_COUNTS))
trust:
	rm -f $(TCOMPRESS_TEST_COUNTS)
	mkdir -p $(dir $(TCOMPRESS_TEST_COUNTS))
	$(BIN)/python -m pytest -n auto -m slow tests/trust/test_inputs.py tests/trust/test_fuzz.py \
		$(PYTEST_ARGS) \
		&& failed=0 || failed=$$?; \
	$(BIN)/python tests/trust/counts.py $(TCOMPRESS_TEST_COUNTS); \
	exit $$failed

# 250 faults in the digits pipeline (TCOMPRESS_TEST_FAULTS=0: every one, for hours), two times a hundred
# kills, ten runs that must be equal, and a line about each.
faults:
	$(BIN)/python -m pytest -s -m slow tests/trust/test_faults.py tests/trust/test_kills.py \
		tests/trust/test_determinism.py $(PYTEST_ARGS)

support:
	$(BIN)/python benchmarks/support_table.py $(BIN)/python $(OTHER)

wheel:
	rm -rf build dist
	$(BIN)/python -m build --wheel
