# Remails for developers. `make` alone lists what there is; continuous integration calls the same names.

PYTHON ?= python3
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: help run demo test fleet bench check format

help: ## Say what there is (this)
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: .venv/dev ## Run every service on this machine and print the address to open
	@$(BIN)/remails dev

demo: .venv/dev ## Send a hundred mails through everything, follow each to its receiver, print a table
	@$(BIN)/remails demo

test: .venv/test ## Run the tests; ARGS="-k word" goes to pytest
	@tests/prepare
	$(BIN)/pytest -rfEs $(ARGS)

fleet: .venv/test ## Deploy to twelve Debian hosts on this machine and break them (as root); ARGS as for test
	@tests/prepare
	REMAILS_FLEET=1 $(BIN)/pytest -rfEs -m fleet tests/fleet $(ARGS)

bench: .venv/test ## Compare with Postfix, Exim and Haraka on this machine (as root, ten minutes; BENCH=long or full: more)
	@tests/prepare bench
	bench/run $(BENCH)

check: .venv/test ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/test ## Put the code into the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A stamp says for which setup.cfg the virtual environment was made.
.venv/dev .venv/deploy .venv/test: .venv/%: setup.cfg pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[$*]'
	@touch $@

.venv/bin/pip:
	@PYTHON=$(PYTHON) .ci/venv
