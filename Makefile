# Every target sets up what it needs and does so again only when the requirements change.
#   make test PYTHON=/path/to/python3.12    another interpreter
#   make train ARGS="--seed 1"              arguments to the program that the target runs

PYTHON  ?= python3
VENV    ?= .venv
ARGS    ?=
CALL    ?=
STAGES  ?=
RESULTS ?=
REHEARSE ?=
COMMIT  ?=

PY      := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
# The checkout is installed in place, so only these files call for another installation.
NEEDS   := pyproject.toml constraints.txt kernels/pyproject.toml setup.py $(wildcard csrc/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test proof soak bench bench-compare lint gpu kernels-report sandbox-asan clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  make %-15s %s\n", $$1, $$2 }'

train: $(VENV)/.for-train ## teach the tiny model modular inverses (ARGS="--seed 1 ...")
	@$(PY) -m azr.train $(ARGS)

test: $(VENV)/.for-test ## run the CPU test suite (ARGS="tests/test_layout.py -k ...")
	@$(PY) -m $(if $(ARGS),pytest $(ARGS),tests)

proof: $(VENV)/.for-test ## run what takes minutes: at most 25 on two cores
	@$(PY) -m pytest -m proof $(ARGS)

soak: $(VENV)/.for-test ## run what takes hours
	@$(PY) -m pytest -m soak $(ARGS)

bench: $(VENV)/.for-bench ## time every part beside its peers (ARGS=--record keeps the record)
	@$(PY) -m pytest bench/ --benchmark-only $(ARGS)

bench-compare: ## hold the last bench run against the committed record of this hardware
	@$(PYTHON) -m bench.compare_records $(ARGS)

sandbox-asan: $(VENV)/.for-test ## build the sandbox with ASan and UBSan and run the corpus against it
	@$(PY) -m tests.sanitized $(ARGS)

lint: $(VENV)/.for-lint ## check style and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyrefly check --python-interpreter-path $(PY)

gpu: ## does it run, numbers, learning (CALL=1, CALL="2 3", STAGES="learn"; REHEARSE=1 on a CPU)
	@$(PYTHON) -m bench.gpu_stages $(STAGES) $(if $(CALL),--call $(CALL)) \
	  $(if $(RESULTS),--results "$(RESULTS)") $(if $(REHEARSE),--rehearse) \
	  $(if $(COMMIT),--commit "$(COMMIT)")

kernels-report: $(VENV)/.for-test ## compile the shipped kernels ahead of time and print their machine code's table
	@$(PY) -m bench.kernels_report $(ARGS)

clean: ## remove the virtual environment, build products and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info kernels/build kernels/*.egg-info examples/*/build examples/*/*.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks bench/results/latest.json
	find azr bench configs examples kernels tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.for-train: $(VENV)/.made $(NEEDS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.for-test: $(VENV)/.made $(NEEDS)
	$(INSTALL) -e ".[test]"
	@touch $(VENV)/.for-train $@

$(VENV)/.for-bench: $(VENV)/.made $(NEEDS)
	$(INSTALL) -e ".[test,bench]"
	@touch $(VENV)/.for-train $(VENV)/.for-test $@

$(VENV)/.for-lint: $(VENV)/.made $(NEEDS)
	$(INSTALL) -e ".[test,lint]"
	@touch $(VENV)/.for-train $(VENV)/.for-test $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys' 2>/dev/null || \
	  { echo "make: $(PYTHON) is not there; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "make: $$($(PYTHON) --version) is not 3.11 to 3.13; name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
