# Targets for people: demo, test, install. For development: core, lint, test-all, bench.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The extension, built in place (localsft/_core*.so) for a checkout that is run from its own folder.
.PHONY: core
core:
	cmake -S . -B build/inplace -G Ninja -DPython_EXECUTABLE=$$(command -v python) -Dpybind11_DIR=$$(python -m pybind11 --cmakedir) > /dev/null
	cmake --build build/inplace
	cmake --install build/inplace --prefix . > /dev/null
