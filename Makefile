# Perrin. `make run` and `make test` need Python 3.11 or newer and make; everything else they fetch themselves.

BIN := .venv/bin
STAMP := .venv/.perrin
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env run test peers lint format docs lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: env  ## sample 100 molecules into out/: an SDF, an HTML page and a table of metrics
	@mkdir -p out
	$(BIN)/perrin sample molecule/qm9 -n 100 -o out/molecules.sdf --view out/molecules.html --evaluate

test: env  ## run the tests in two processes (make test ARGS="-n 0 -k noise")
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

peers: .peers/.perrin  ## compare with diffusers, k-diffusion and azula, installed apart into .peers
	PYTHONPATH=.peers PERRIN_PEERS=1 $(BIN)/python -m pytest -q -m peers tests/core $(ARGS)

.peers/.perrin: tests/core/peers.txt | $(STAMP)
	@"$(PYTHON)" tools/setup_env.py peers
	@touch $@

env: $(STAMP)  ## create or update .venv; nothing to do if it is up to date

$(STAMP): pyproject.toml constraints.txt tools/setup_env.py
	@"$(or $(PYTHON),false)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, found: $(or $(PYTHON),none); name one with PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" tools/setup_env.py
	@touch $@

lint: env  ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## let ruff mend style and layout
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: env  ## build docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# torch is chosen per machine (tools/setup_env.py), so it and its CUDA companions stay out of the lock. Pins are kept where
# they still fit; LOCKFLAGS=--upgrade renews them. torch 2.13.0 is what CI runs, so the lock must suit it.
lock: $(BIN)/uv  ## resolve constraints.txt again (LOCKFLAGS=--upgrade renews every pin)
	printf 'hatchling\neditables\ntorch==2.13.0\n' | $(BIN)/uv pip compile - pyproject.toml --extra dev --universal \
		--python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet $(LOCKFLAGS) -o constraints.txt
	grep -vE '^(torch|triton|nvidia-[^=]*|cuda-[^=]*)==' constraints.txt > constraints.tmp
	mv constraints.tmp constraints.txt

$(BIN)/uv:
	@$(MAKE) env

clean:  ## remove the environment, caches and outputs of make run
	rm -rf .venv .peers out build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
