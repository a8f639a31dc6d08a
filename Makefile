# Needs python3 (3.11 to 3.13, with venv), make and a package index; everything else is installed below .venv and .tox.

PYTHON ?= python3
PROMPT ?= a small red square moves left
VIDEO ?= outputs/videos/demo.mp4
REPORT ?= outputs/report

VENV := .venv
TOX := $(VENV)/bin/tox
MAIN := .tox/main/.installed
IN_MAIN := $(TOX) -qq exec -e main --

# uv shall trust the certificates that the machine trusts, as pip does (the second is its name before uv 0.11).
export UV_SYSTEM_CERTS ?= true
export UV_NATIVE_TLS ?= true

.DEFAULT_GOAL := help
.PHONY: help demo all test test-all benchmark lint format docs doctor clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make demo PROMPT="a large blue circle moves up"'

# tox itself; it makes and updates its environments from pyproject.toml.
$(TOX):
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
	  "Python 3.11 to 3.13 is needed, this is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python3 has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check "tox>=4.25" "tox-uv>=1.20" || { rm -rf $(VENV); exit 1; }

# The environment of all targets, made again when what it is made from changes.
$(MAIN): pyproject.toml tox.ini | $(TOX)
	@echo "== Environment (the first time installs PyTorch and the rest)"
	@$(TOX) run -qq -e main --notest
	@touch $@

# Through the environment, so that a prompt may hold quotes.
demo: export PROMPT := $(PROMPT)
demo: export WAN_TRT_REPORT := $(REPORT)
demo: $(MAIN) ## export, build, generate a video from PROMPT, run the three suites
	@echo "== Export, build and generate: $$PROMPT"
	@$(IN_MAIN) wan-trt run --prompt "$$PROMPT" --out "$(VIDEO)"
	@echo "== Suites"
	@status=0; \
	$(IN_MAIN) pytest -v suites/parity suites/memory suites/perf || status=$$?; \
	echo; \
	echo "Video:  $(abspath $(VIDEO))"; \
	echo "Report: $(abspath $(REPORT))"; \
	exit $$status

all: test docs demo ## tests, suites, documentation and demo

test: $(MAIN) ## lint, types, unit tests and the three suites
	@$(TOX) run -q -e main

test-all: $(MAIN) ## everything, the slow tier too
	@$(TOX) run -q -e main
	@$(IN_MAIN) pytest suites/unit -m slow

benchmark: export WAN_TRT_REPORT := $(REPORT)/benchmark
benchmark: $(MAIN) ## time the engines against stock diffusers, on a machine that does nothing else
	@$(IN_MAIN) pytest suites/perf

lint: $(MAIN) ## ruff and mypy only
	@$(IN_MAIN) ruff check
	@$(IN_MAIN) ruff format --check
	@$(IN_MAIN) mypy

format: $(MAIN) ## let ruff format and fix the sources
	@$(IN_MAIN) ruff check --fix
	@$(IN_MAIN) ruff format

docs: $(MAIN) ## build the documentation as a site (outputs/site/index.html)
	@$(IN_MAIN) mkdocs build --strict --quiet
	@echo "Site: $(abspath outputs/site/index.html) (to search it: python3 -m http.server -d outputs/site)"

doctor: $(MAIN) ## what this machine can run, and what is missing
	@$(IN_MAIN) wan-trt doctor

clean: ## remove environments, outputs and caches of this folder (not the engine cache: wan-trt engines prune)
	rm -rf $(VENV) .tox outputs examples/*/outputs build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
