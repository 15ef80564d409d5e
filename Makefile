# Everything is done from here; `make help` lists it. State lies under INTERPRETER_HOME.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := qemu-system-x86 bubblewrap mmdebstrap squashfs-tools e2fsprogs uidmap python3-venv cpio
BROWSER := chromium fonts-dejavu-core
# A program of each package: apt-get runs only when one of them is missing.
PROGRAMS := qemu-system-x86_64 bwrap mmdebstrap mksquashfs cpio

export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help system browser setup demo test test-fast lint format bench bench-service bench-jupyter bench-neighbours fuzz lock clean

help: ## Show what can be done
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

system: ## Install the system's packages that are missing (Debian; root or sudo)
	@for program in $(PROGRAMS); do command -v $$program > /dev/null || missing=1; done; \
	$(PYTHON) -c 'import ensurepip' 2> /dev/null || missing=1; \
	if [ -n "$$missing" ]; then \
		echo "installing: $(PACKAGES)"; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(PACKAGES) > /dev/null; \
	fi

browser: ## Install Chromium when it is missing: the tests use JupyterLab in it (Debian; root or sudo)
	@command -v chromium > /dev/null || { \
		echo "installing: $(BROWSER)"; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(BROWSER) > /dev/null; \
	}

setup: system $(VENV)/.installed ## Make .venv with the command .venv/bin/interpreter

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "installing Python packages into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Build python-data, analyse the sample CSV in a session, save the plot
	@$(BIN)/python notebooks/demo.py

test: setup browser ## Run all tests, two files at once; builds two templates from nothing unless they are there
	@$(BIN)/pytest --numprocesses $${TESTS_AT_ONCE:-2} --dist loadfile

test-fast: setup ## Run the tests that need no machine (seconds)
	@$(BIN)/pytest -m "not machine"

lint: setup ## Check style, types and layers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: setup ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: setup ## Measure restore, kernel, vsock, memory and idle CPU; writes benchmarks/results.json
	@$(BIN)/python -m benchmarks

bench-service: setup ## Measure the service over HTTP; writes benchmarks/service.json
	@$(BIN)/python -m benchmarks.service

bench-jupyter: setup ## Measure kernels behind the gateway, alone and many at once; writes benchmarks/jupyter.json
	@$(BIN)/python -m benchmarks.jupyter

bench-neighbours: setup ## Measure what one session costs another, for each kind of noise; fails when a bound does not hold
	@$(BIN)/python -m benchmarks.neighbours

fuzz: setup ## Fuzz the parsers of what comes from the guest (FUZZ_RUNS=200000 each)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=2.3"
	@for target in tests/fuzz/fuzz_*.py; do echo "== $$target"; \
		$(BIN)/python $$target -runs=$${FUZZ_RUNS:-200000} -max_total_time=$${FUZZ_SECONDS:-120} || exit 1; done

lock: setup ## Resolve requirements.lock anew, for the oldest Python that the package runs on
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(BIN)/uv pip compile --quiet --strip-extras --generate-hashes --no-header --python-version 3.11.0 \
		--extra dev --extra guest --output-file requirements.lock pyproject.toml
	@sed -i '1i # Names, versions and hashes of everything that `make setup` installs; made by `make lock`.' requirements.lock

clean: ## Remove what the build tools made (not INTERPRETER_HOME)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
