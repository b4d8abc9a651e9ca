PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BUILD ?= build/dev
GENERATOR := $(if $(shell command -v ninja),Ninja,Unix Makefiles)

.PHONY: dev test lint clean

# The extension for this tree, beside the Python sources: edgec/_core*.so
dev:
	@mkdir -p $(dir $(BUILD))
	cmake -S . -B $(BUILD) -G "$(GENERATOR)" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(shell command -v $(PYTHON))) \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) $(CMAKE_ARGS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	cmake --build $(BUILD) -j $(JOBS)
	cp $(BUILD)/_core*.so edgec/

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .

clean:
	rm -rf build edgec/_core*.so
