# make demo: install, compile a model, ask it about texts.   make test: the tests.   `PYTHON=... make test` uses your environment.
PYTHON3 ?= python3
ifeq ($(origin PYTHON), undefined)
  PYTHON := .venv/bin/python
  VENV := .venv/dev.done
endif
export PATH := $(abspath $(dir $(PYTHON))):$(PATH)
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BUILD ?= build/dev
SOURCES = $(shell find edgec csrc targets -type f -not -name '*.so' -not -name '*.pyc' 2>/dev/null) pyproject.toml CMakeLists.txt
CXX_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h')
PIP = $(PYTHON) -m pip --disable-pip-version-check -qq
TESTS ?= tests

.PHONY: demo test fuzz lint models dev wheels examples bench bench-kernels test-asan test-arm test-load env clean

# The package as a user installs it, with what building needs, in .venv
demo: .venv/demo.done
	@.venv/bin/edgec demo

test: env dev models
	$(PYTHON) -m pytest -n 2 $(TESTS)

# The same properties on examples drawn afresh; the default run draws the same ones each time
fuzz: env dev models
	EDGEC_FUZZ=1 $(PYTHON) -m pytest -n 2 tests/property tests/hostile

lint: env dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(wildcard edgec/ir edgec/rewrites)
	clang-format --dry-run -Werror $(CXX_SOURCES)
	$(PYTHON) -m pytest -q tests/unit/test_imports.py

# The real models that tests use, in $$EDGEC_MODELS or ~/.cache/edgec-models; the tests skip those that cannot be had
models: env
	@$(PYTHON) tests/fetch_models.py -q --keep-going

# The extension for this tree, beside the Python sources: edgec/_core*.so
dev: env
	@mkdir -p $(dir $(BUILD))
	cmake -S . -B $(BUILD) -G "$$(command -v ninja > /dev/null && echo Ninja || echo Unix Makefiles)" \
	  -DCMAKE_BUILD_TYPE=Release -DEDGEC_AMX_MODEL=ON -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) $(CMAKE_ARGS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	cmake --build $(BUILD) -j $(JOBS)
	for f in $(BUILD)/_core*.so; do cp $$f edgec/.new.so && mv edgec/.new.so edgec/$$(basename $$f); done

# Wheels for arm64 Linux, x86-64 Linux and macOS, compiled here, in dist/ (minutes the first time)
wheels: env
	$(PYTHON) tools/wheels.py

# The kernels in C++ under AddressSanitizer and UBSan
test-asan: env
	cmake -S . -B build/asan -DCMAKE_BUILD_TYPE=Debug -DEDGEC_SANITIZE=ON -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) > /dev/null
	cmake --build build/asan -j $(JOBS) --target kernels_test
	build/asan/csrc/kernels/kernels_test

# The examples that train, on a few texts and for a few steps (python examples/sentiment/make.py does it in earnest)
examples: env dev models
	EDGEC_TEST_EXAMPLES=1 $(PYTHON) -m pytest -q -rs tests/cli/test_demo.py

# Latency and accuracy of whole models beside onnxruntime, after the kernels beside their limits
bench: dev models bench-kernels
	PYTHONPATH=. $(PYTHON) bench/models.py
	PYTHONPATH=. $(PYTHON) bench/int8.py
	PYTHONPATH=. $(PYTHON) bench/accuracy.py
	PYTHONPATH=. $(PYTHON) bench/estimates.py

# The Arm kernels under emulation: correctness, and a limit on executed instructions (downloads 250 MB the first time)
test-arm: env
	EDGEC_TEST_ARM=1 $(PYTHON) -m pytest -q -s -rs tests/arm

# Eight clients on edgec serve for a minute, SmolLM2 in int4
LM ?= $(HOME)/.cache/edgec-models/smollm2
test-load: dev
	@mkdir -p build
	PYTHONPATH=. $(PYTHON) -m edgec.cli build $(LM) -o build/load.edgec --no-check
	PYTHONPATH=.:tests:tests/serve $(PYTHON) tests/serve/load.py build/load.edgec

# int4, int8 and fp32 products beside onnxruntime and the machine's limits
bench-kernels: dev
	PYTHONPATH=. $(PYTHON) bench/kernels.py

env: $(VENV)

.venv/bin/python:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgec needs Python 3.11 or newer: set PYTHON3")'
	$(PYTHON3) -m venv .venv

.venv/dev.done: pyproject.toml tools/requirements.py | .venv/bin/python
	.venv/bin/python tools/requirements.py dev > .venv/dev.txt
	$(PIP) install -r .venv/dev.txt
	@touch $@

.venv/demo.done: $(SOURCES) | .venv/bin/python
	.venv/bin/python -m pip --disable-pip-version-check install -qq ".[build,lm]"
	@touch $@

clean:
	rm -rf build edgec/_core*.so
