# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need Python 3.10 or newer with venv and pip, nothing else.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

# The CPU build of torch, never the one that brings gigabytes of CUDA.  On Linux only the local
# version "+cpu" says so; it comes from any index or folder that pip is told of, for example
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
TORCH_CPU := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)

BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench train-demo clean

help:
	@echo 'make demo        stream a real clip, print the verdicts, write demo/*.jsonl'
	@echo 'make test        all tests;   PYTEST_ARGS="-k audio" to choose'
	@echo 'make lint        ruff and mypy'
	@echo 'make bench       speed and memory of the whole stream'
	@echo 'make train-demo  forge, train, export and stream in miniature (needs torch)'
	@echo 'make clean       remove the environment and what the commands wrote'

demo: $(VENV)/.demo
	$(PY) -m runtime.demo --output demo

test: $(VENV)/.dev
	@$(PY) -c 'import torch' 2>/dev/null || echo 'make test: torch is not installed: the tests of the trainer and of the torch export are skipped (remedy: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make clean test)'
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.demo
	$(PY) -m benchmarks.stream --output bench/stream.json

train-demo: $(VENV)/.dev
	rm -rf runs/demo
	$(PY) -m trainer.fit --output runs/demo
	$(PY) -m export.build_engine --checkpoint runs/demo/checkpoint.safetensors --backend onnx --output runs/demo/onnx
	$(PY) -m runtime.stream --source "$$($(PY) -m runtime.samples)" --model runs/demo/onnx || [ $$? = 3 ]

clean:
	rm -rf $(VENV) build demo bench runs engines .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "make: Python 3.10 or newer is needed, this is %d.%d; say which with PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made $(BUILD_INPUTS)
	$(INSTALL) --editable '.[cpu]'
	@touch $@

# Torch first and alone: where its CPU build cannot be had, everything else is installed without it.
$(VENV)/.dev: $(VENV)/.made $(BUILD_INPUTS)
	@if $(INSTALL) '$(TORCH_CPU)' 2>$(VENV)/torch.log; then extras=cpu,export,train,dev; else \
	  echo 'make: $(TORCH_CPU) cannot be had for this Python here: going on without torch'; \
	  extras=cpu,export,dev; fi; \
	set -x; $(INSTALL) --editable ".[$$extras]"
	@touch $@ $(VENV)/.demo
