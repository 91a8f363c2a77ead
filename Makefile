# Everything runs in .venv, which each target sets up when it is missing or pyproject.toml has changed.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run demo keys config test check lint types format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

run: .venv/.server ## set up and run the service (with the built-in WeChat sandbox if no app is configured)
	@exec $(BIN)/authsvc serve --or-sandbox

demo: .venv/.server ## play a mini-program against a running `make run`, showing every request and reply
	@$(BIN)/authsvc demo

keys: .venv/.server ## make the first production keys in keys/ (never overwrites)
	@$(BIN)/authsvc keys init

config: .venv/.server ## print the settings in force, secrets masked
	@$(BIN)/authsvc config --or-sandbox

test: .venv/.test ## set up and run every test
	@$(BIN)/python -m pytest

lint: .venv/.test ## ruff: lint and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/.test ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## lint + types + test, as CI does

format: .venv/.test ## let ruff put the code in order
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove the environment and caches; keys and stores stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "authsvc needs Python 3.11 or later; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up .venv (once)"
	@$(PYTHON) -m venv --clear .venv || \
		{ rm -rf .venv; echo "python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/.server: .venv/.made pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

.venv/.test: .venv/.made pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,test]'
	@touch $@ .venv/.server
