# `make help` says what there is. Each target sets up what it needs, once, and again when pyproject.toml or
# constraints.txt change. Works from anywhere: make -C path/to/the/clone bench

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))

PYTHON ?= python3
VENV ?= $(ROOT)/.venv
MODEL ?= smollm2-135m
OUT ?= results/quick-$(shell date +%Y%m%d-%H%M%S)
BENCH_ARGS ?= --quick
# What an hour costs is an input. This one is an example, not the price of your machine; state yours:
#   make bench PRICE_PER_HOUR=0.05 CURRENCY=EUR PRICE_SOURCE='invoice of May'      (empty: no price)
EXAMPLE_PRICE := 0.0816
PRICE_PER_HOUR ?= $(EXAMPLE_PRICE)
ifeq ($(PRICE_PER_HOUR),$(EXAMPLE_PRICE))
CURRENCY ?= USD
PRICE_SOURCE ?= example input, not the price of this machine: 2 vCPU on demand (EC2 m7g.large, us-east-1, Linux), list price of 2026-06-17 as quoted by factualminds.com
endif
CURRENCY ?= EUR
PRICE_SOURCE ?= stated with make
PRICE_ARGS = $(if $(findstring --price-per-hour,$(BENCH_ARGS)),,$(if $(PRICE_PER_HOUR),--price-per-hour '$(PRICE_PER_HOUR)' --currency '$(CURRENCY)' --price-source '$(PRICE_SOURCE)'))
PYTEST_ARGS ?=
# A CPU-only build of torch is much smaller: make bench TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BASE := $(VENV)/.stamp-base
BENCH := $(VENV)/.stamp-bench
DEV := $(VENV)/.stamp-dev
PEERS_VENV ?= $(ROOT)/.venv-peers
PEERS := $(PEERS_VENV)/.stamp-peers

.PHONY: help bench test lint doctor peers arm clean test-tools

help: ## This list
	@echo "Inference-Optim-LLM"
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' '$(ROOT)/Makefile' | expand -t 16
	@echo "Settings: MODEL=$(MODEL)  BENCH_ARGS='$(BENCH_ARGS)'  PRICE_PER_HOUR=$(PRICE_PER_HOUR) CURRENCY=$(CURRENCY) (an example: state yours)  PYTEST_ARGS=''  PYTHON=$(PYTHON)  TORCH_INDEX="

bench: $(BENCH) ## The main job on this machine: what each lever gains; writes results/.../report.html
	cd '$(ROOT)' && '$(BIN)/inferoptim' bench --model '$(MODEL)' $(PRICE_ARGS) $(BENCH_ARGS) --out '$(OUT)'

doctor: $(BENCH) ## Is this machine ready? What is missing, and what to do about it
	@cd '$(ROOT)' && '$(BIN)/inferoptim' doctor

peers: $(PEERS) ## llama.cpp (compiled here) and OpenVINO GenAI for python -m benchmarks.cpu, in an environment of their own

# Every check runs even after one failed, so that one pass shows everything that is wrong.
define CHECKS
ruff check .
ruff format --check .
mypy
lint-imports
endef
export CHECKS

lint: $(DEV) ## ruff, mypy and the import rules
	@cd '$(ROOT)'; export PATH='$(BIN)':"$$PATH"; failed=(); \
	while IFS= read -r check; do echo "== $$check"; $$check || failed+=("$$check"); done <<< "$$CHECKS"; \
	if (( $${#failed[@]} )); then printf 'failed: %s\n' "$${failed[@]}" >&2; exit 1; fi

test: $(DEV) test-tools ## lint, then every test; both run, whatever the first one found
	@cd '$(ROOT)'; failed=(); \
	$(MAKE) --no-print-directory lint || failed+=(lint); \
	echo "== pytest $(PYTEST_ARGS)"; '$(BIN)/python' -m pytest $(PYTEST_ARGS) || failed+=(pytest); \
	if (( $${#failed[@]} )); then printf 'failed: %s\n' "$${failed[@]}" >&2; exit 1; fi

arm: $(DEV) ## The CPU kernels compiled for 64-bit ARM, run under emulation (apt-get install g++-aarch64-linux-gnu qemu-user)
	'$(BIN)/python' -m pytest '$(ROOT)/tests/parity/emulated_arm.py'

# Debian tools that some tests drive for real. A test that needs one says so when it is missing.
test-tools:
	@cd '$(ROOT)'; for tool in prometheus chromium docker-compose; do \
	  command -v "$$tool" > /dev/null && continue; \
	  grep -rqE --include='*.py' "[\"']$$tool[\"']" tests || continue; \
	  if [[ $$(id -u) == 0 ]] && command -v apt-get > /dev/null; then \
	    echo "Installing $$tool (Debian package) for the tests that drive it"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$tool"; } \
	      > /dev/null || echo "could not install $$tool; going on without it"; \
	  else echo "$$tool is missing and only root can install it (apt-get install $$tool); going on without it"; fi; \
	done

clean: ## Remove what make built (environment, caches); results/ stays
	cd '$(ROOT)' && rm -rf '$(VENV)' '$(PEERS_VENV)' build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache .hypothesis && find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): $(ROOT)/constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed; set PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x '$(BIN)/python' || '$(PYTHON)' -m venv '$(VENV)' \
	  || { echo "could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing torch (the first time takes minutes)"
	$(PIP) install -c '$(ROOT)/constraints.txt' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') torch
	@touch '$@'

$(BENCH): $(BASE) $(ROOT)/pyproject.toml
	$(PIP) install -q -c '$(ROOT)/constraints.txt' -e '$(ROOT)[bench]'
	@touch '$@'

$(DEV): $(BASE) $(ROOT)/pyproject.toml
	$(PIP) install -q -c '$(ROOT)/constraints.txt' -e '$(ROOT)[dev]'
	@touch '$@' '$(BENCH)'

# torchvision comes along with optimum-intel, is not needed for text, and fails to load beside a CPU-only torch.
$(PEERS): $(ROOT)/constraints.txt
	@test -x '$(PEERS_VENV)/bin/python' || '$(PYTHON)' -m venv '$(PEERS_VENV)'
	@echo "Installing the peers; compiling llama.cpp takes about 10 minutes on two cores"
	'$(PEERS_VENV)/bin/python' -m pip --disable-pip-version-check install -q -c '$(ROOT)/constraints.txt' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') torch
	'$(PEERS_VENV)/bin/python' -m pip --disable-pip-version-check install -q -c '$(ROOT)/constraints.txt' --no-binary llama-cpp-python \
	  llama-cpp-python openvino-genai 'optimum-intel[openvino]'
	'$(PEERS_VENV)/bin/python' -m pip --disable-pip-version-check uninstall -q -y torchvision
	@touch '$@'
