# For people:        make demo, make install, make test
# For development:   make core, make lint, make test-all, make test-neon, make test-avx512, make bench, make bench-mlx, make clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
TEMPLATES := $(VENV)/templates

SOURCES := pyproject.toml CMakeLists.txt README.md $(shell find csrc localsft models examples -type f ! -name '*.so' ! -path '*/__pycache__/*')

.PHONY: install demo test test-all test-neon test-avx512 lint bench bench-mlx core clean compiler

install: $(VENV)/installed

demo: install
	$(BIN)/localsft demo

# The tests run on the checkout's Python files with the extension that was built for the installed package, so that it is
# compiled only once; tests/test_installed.py looks at the installed package itself.
test: $(VENV)/tests-installed
	$(MAKE) --no-print-directory lint
	LOCALSFT_TEST_SMOLLM2=$$($(BIN)/localsft models pull $(MODEL)) $(BIN)/python -m pytest $(TESTS)

test-all: $(VENV)/tests-installed $(TEMPLATES)
	$(MAKE) --no-print-directory lint
	LOCALSFT_TEST_TEMPLATES=$(abspath $(TEMPLATES)) LOCALSFT_TEST_SMOLLM2=$$($(BIN)/localsft models pull $(MODEL)) $(BIN)/python -m pytest -m 'slow or not slow' $(TESTS)
	tests/neon.sh || [ $$? -eq 77 ]
	tests/avx512.sh || [ $$? -eq 77 ]

# The NEON kernels under qemu, on a machine without NEON (tests/neon.sh); test-all goes on without what they need, and says so.
test-neon: $(VENV)/pip
	tests/neon.sh

# The AVX-512 kernels in AVX2, on a machine without AVX-512 (tests/avx512.sh); test-all goes on in the same way.
test-avx512: $(VENV)/tests-installed
	tests/avx512.sh

lint: $(VENV)/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests -name '*.h' -o -name '*.cc' -o -name '*.inl')

# The chat templates of 70 models, out of the source distribution of llama-cpp-python; nothing is built.
$(TEMPLATES): | $(VENV)/pip
	$(BIN)/python -m pip install --quiet scikit-build-core
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python --dest $@.part llama-cpp-python==0.3.36
	cd $@.part && tar -xzf llama_cpp_python-0.3.36.tar.gz --strip-components 5 llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates
	rm $@.part/*.tar.gz && mv $@.part $@

# The benchmarks that need no peer; the others say what they need (bench/*.py).
bench: $(VENV)/tests-installed
	$(BIN)/python bench/pack.py
	$(BIN)/python bench/attention.py

# Beside mlx_lm.lora on this machine's MLX device; BENCH="--model FOLDER --data FILE" for a model and rows of your own.
bench-mlx: $(VENV)/tests-installed
	$(BIN)/python bench/mlx_engine.py $(BENCH)

$(VENV)/pip: | compiler
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "localsft needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/installed: $(VENV)/pip $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	@touch $@

$(VENV)/tests-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet '.[test,mlx]'
	cp $$($(BIN)/python -I -c 'from localsft import _core; print(_core.__file__)') localsft/
	@touch $@

compiler:
	@command -v $${CXX:-c++} > /dev/null || { echo "a C++17 compiler is needed (Debian: apt install g++; macOS: xcode-select --install)"; exit 1; }

# The extension, built in place (localsft/_core*.so) with the tools of the active environment, for work on csrc/.
core:
	cmake -S . -B build/inplace -G Ninja -DPython_EXECUTABLE=$$(command -v python) -Dpybind11_DIR=$$(python -m pybind11 --cmakedir) > /dev/null
	cmake --build build/inplace
	cmake --install build/inplace --prefix . > /dev/null

clean:
	rm -rf $(VENV) build dist localsft/_core*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
