# Everything runs in .venv, which each target sets up when it is missing or pyproject.toml has changed.
PYTHON ?= python3
BIN := .venv/bin
# With CI there are more of them.
PEERS := .venv/.peers$(if $(CI),-ci)

.DEFAULT_GOAL := help
.PHONY: help run demo keys keys-status rotate rotate-store rotate-all revoke revoke-all keys-tick keys-prune \
	keys-export keys-drill keys-passphrase store-status config doctor test soak bench check lint types format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

run: .venv/.server ## set up and run the service (with the built-in WeChat sandbox if no app is configured)
	@exec $(BIN)/authsvc serve --or-sandbox

demo: .venv/.server ## play a mini-program against a running `make run`, showing every request and reply
	@$(BIN)/authsvc demo

keys: .venv/.server ## make the first production keys in keys/ (never overwrites)
	@$(BIN)/authsvc keys init $(ARGS)

keys-status: .venv/.server ## every key, its state, what comes next; ends non-zero if something needs you
	@$(BIN)/authsvc keys status $(ARGS)

rotate: .venv/.server ## let the standby sign and publish the next one (ARGS=--dry-run, ARGS=--early)
	@$(BIN)/authsvc keys rotate $(ARGS)

rotate-store: .venv/.server ## the next key that seals the side store
	@$(BIN)/authsvc keys rotate-store $(ARGS)

rotate-all: .venv/.server ## both: rotate and rotate-store
	@$(BIN)/authsvc keys rotate-all $(ARGS)

revoke: .venv/.server ## put one key out of use at once (KID=the-full-kid); its standby takes over
	@$(BIN)/authsvc keys revoke $(KID) $(ARGS)

revoke-all: .venv/.server ## the folder was stolen: all keys out of use at once, everybody logs in again
	@$(BIN)/authsvc keys revoke --all $(ARGS)

keys-tick: .venv/.server ## do what is due, as the running service does by itself
	@$(BIN)/authsvc keys tick $(ARGS)

keys-prune: .venv/.server ## forget removed keys, clear up after interrupted commands
	@$(BIN)/authsvc keys prune $(ARGS)

keys-export: .venv/.server ## write jwks.json and a PEM for each public key (DIR=folder)
	@$(BIN)/authsvc keys export $(DIR) $(ARGS)

keys-drill: .venv/.server ## rehearse a rotation and a revocation on a temporary copy
	@$(BIN)/authsvc keys drill $(ARGS)

keys-passphrase: .venv/.server ## write the private parts anew under another passphrase (ARGS=--remove)
	@$(BIN)/authsvc keys passphrase $(ARGS)

store-status: .venv/.server ## what lies in the side store, under which keys
	@$(BIN)/authsvc store status $(ARGS)

config: .venv/.server ## print the settings in force, secrets masked
	@$(BIN)/authsvc config --or-sandbox

doctor: .venv/.server ## look everything over, with the mend of what is amiss; ends non-zero if something is
	@$(BIN)/authsvc doctor --or-sandbox $(ARGS)

test: .venv/.test $(PEERS) ## set up and run every test
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

soak: .venv/.test ## run the full sweeps that `make test` samples (some minutes more)
	@$(BIN)/python -m pytest -m soak --timeout 3600

bench: .venv/.test $(PEERS) ## what verifying, storing and serving cost beside peers, and what is noticed of a hanging WeChat
	@$(BIN)/python -m tests.bench.verify
	@$(BIN)/python -m tests.bench.store
	@$(BIN)/python -m tests.bench.wechat_hangs
	@$(BIN)/python -m tests.bench.serve

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

$(PEERS): tests/support/peers.sh tests/integration/node/package-lock.json \
		tests/integration/devtools/package-lock.json | .venv/.made
	@sh tests/support/peers.sh .venv/peers
	@touch $@
