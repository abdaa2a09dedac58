# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need Python 3.10 or newer with venv and pip, nothing else.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

# One thread a process.  Three on two cores, since many tests wait (for a camera, a server, Ray).
TEST_JOBS ?= 3
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile

# The CPU build of torch, never the one that brings gigabytes of CUDA.  On Linux only the local
# version "+cpu" says so; it comes from any index or folder that pip is told of, for example
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
TORCH_CPU := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)

BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

# The plugin library.  Only the native targets compile CUDA, and so do the tests where nvcc is found.
ARCHS ?= 80;87;110
ARCHS_ALL := 80;86;87;89;90;110;120
NVCC := $(firstword $(shell command -v "$${CUDACXX:-nvcc}" /usr/local/cuda/bin/nvcc 2>/dev/null))
TENSORRT_HEADERS := $(wildcard $(addsuffix /NvInfer.h,$(TENSORRT_ROOT)/include /usr/include /usr/include/*-linux-gnu))
CUDA_RELEASE = $(shell $(NVCC) --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
JOBS ?= 2
NATIVE := cmake -S . -DMSCT_CUDA=ON -DMSCT_BINDINGS=OFF -DMSCT_PLUGINS=ON -DPython_EXECUTABLE='$(abspath $(PY))'
# What a GPU-less machine needs to build and inspect plugin engines; no wheels for others.
RTX := $(if $(NVCC),$(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint site bench bench-ops train-demo native native-all native-aarch64 clean

help:
	@echo 'make demo        stream a real clip, print the verdicts, write demo/*.jsonl'
	@echo 'make test        what every change must hold; PYTEST_ARGS="-k audio" to choose, TEST_JOBS=8'
	@echo '                 for eight processes'
	@echo 'make test-all    also those marked thorough: browsers, network cameras, Ray, CUDA builds,'
	@echo '                 whole trainings, kills, soak and fuzzing'
	@echo 'make lint        ruff and mypy'
	@echo 'make bench       speed, memory and latency of the whole stream, then of the two ops (these need torch)'
	@echo 'make bench-ops   the ops at all sizes: with an NVIDIA GPU, nvcc and torch for CUDA our kernels'
	@echo '                 against torch and TensorRT; on a CPU what there is instead'
	@echo 'make train-demo  forge, train, export and stream in miniature (needs torch)'
	@echo 'make native      build/native/libmsct_plugins.so, the TensorRT plugins (needs nvcc);'
	@echo '                 ARCHS="87" to choose, default "80;87;110"'
	@echo 'make native-all  the same for every architecture, with times, into benchmarks/results'
	@echo 'make native-aarch64  the same for Jetson and Grace, on x86-64 (needs g++-aarch64-linux-gnu)'
	@echo 'make site        the pages of docs/ as a site, into build/site'
	@echo 'make clean       remove the environment and what the commands wrote'

demo: $(VENV)/.demo
	$(PY) -m runtime.demo --output demo

test: $(VENV)/.dev
	@$(PY) -c 'import torch' 2>/dev/null || echo 'make test: torch is not installed: the tests of the trainer and of the torch export are skipped (remedy: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make clean test)'
	$(PYTEST) -m 'not thorough' $(PYTEST_ARGS)

test-all: $(VENV)/.dev
	$(PYTEST) $(PYTEST_ARGS)

site: $(VENV)/.dev
	$(PY) -m mkdocs build -q -f docs/mkdocs.yml

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m mypy

# Pytest's 5: nothing to run, since torch is not there.
bench: $(VENV)/.dev
	$(PY) -m benchmarks.stream --output bench/stream.json
	$(PY) -m benchmarks.latency --output bench/latency
	$(PY) -m pytest benchmarks/ops/test_speed.py --benchmark-max-time=0.5 --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=bench/ops-speed.json || [ $$? = 5 ]

bench-ops:
	$(PYTHON) -m benchmarks.ops --output bench/ops.json

native: $(VENV)/.headers
	$(NATIVE) -B build/native '-DMSCT_CUDA_ARCHITECTURES=$(ARCHS)'
	cmake --build build/native --parallel $(JOBS)

native-all: $(VENV)/.demo $(VENV)/.headers
	$(PY) -m benchmarks.ops.native_build --architectures '$(ARCHS_ALL)' --output benchmarks/results/native-all.json

native-aarch64: $(VENV)/.headers build/cuda-aarch64/.made
	$(NATIVE) -B build/native-aarch64 '-DMSCT_CUDA_ARCHITECTURES=$(if $(filter file,$(origin ARCHS)),87;110,$(ARCHS))' \
	  -DCMAKE_TOOLCHAIN_FILE=csrc/cmake/aarch64.cmake -DMSCT_CUDA_TARGET='$(CURDIR)/build/cuda-aarch64/nvidia/cu13'
	cmake --build build/native-aarch64 --parallel $(JOBS)
	aarch64-linux-gnu-readelf -h build/native-aarch64/libmsct_plugins.so | grep -E 'Class|Machine'

train-demo: $(VENV)/.dev
	rm -rf runs/demo
	$(PY) -m trainer.fit --output runs/demo
	$(PY) -m export.build_engine --checkpoint runs/demo/checkpoint.safetensors --backend onnx --output runs/demo/onnx
	$(PY) -m runtime.stream --source "$$($(PY) -m runtime.demo.sample)" --model runs/demo/onnx || [ $$? = 3 ]

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
	@if $(INSTALL) '$(TORCH_CPU)' 2>$(VENV)/torch.log; then extras=cpu,export,scan,train,dev; else \
	  echo 'make: $(TORCH_CPU) cannot be had for this Python here: going on without torch'; \
	  extras=cpu,export,scan,dev; fi; \
	if [ -n '$(RTX)' ]; then extras=$$extras,tensorrt-rtx; fi; \
	set -x; $(INSTALL) --editable ".[$$extras]"
	if [ -n '$(NVCC)' ]; then $(MAKE) --no-print-directory $(VENV)/.headers; fi
	@touch $@ $(VENV)/.demo

# TensorRT's headers, where the system has none.  Without its dependencies: it is wanted for them alone.
$(VENV)/.headers: $(VENV)/.made constraints.txt
	$(if $(TENSORRT_HEADERS),,$(INSTALL) --no-deps kernel-lens)
	@touch $@

# CUDA for 64-bit Arm in the version of nvcc: headers and the static runtime, from the wheels.
build/cuda-aarch64/.made: $(VENV)/.made
	@command -v aarch64-linux-gnu-g++ >/dev/null || { echo 'make: aarch64-linux-gnu-g++ was not found: apt-get install g++-aarch64-linux-gnu'; exit 1; }
	@[ -n '$(NVCC)' ] || { echo 'make: nvcc was not found: install CUDA 13, or set CUDACXX'; exit 1; }
	@case '$(CUDA_RELEASE)' in 13.*) ;; *) echo 'make: the wheels of CUDA $(CUDA_RELEASE) for aarch64 have no static runtime: CUDA 13 is needed'; exit 1;; esac
	rm -rf $(@D)
	$(PIP) download --quiet --no-deps --only-binary=:all: --platform manylinux2014_aarch64 --dest $(@D) \
	  $(foreach part,runtime crt cccl nvcc,nvidia-cuda-$(part)==$(CUDA_RELEASE).*)
	for wheel in $(@D)/*.whl; do $(PY) -m zipfile -e $$wheel $(@D); done
	@touch $@
