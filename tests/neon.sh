#!/usr/bin/env bash
# Tests of the NEON kernels on another kind of machine: cross-compiled, and run by an aarch64 Python under qemu.
#
# .venv/aarch64 gets that Python and its libraries out of arm64 packages of this Debian or Ubuntu (apt-get fetches them, nothing is
# installed, root is not needed), and wheels for it. The extension lies in localsft/ beside this machine's: its name tells the platform.
# Exit status 77: nothing was tested, for the reason that is printed.
. "$(dirname "${BASH_SOURCE[0]}")/elsewhere.sh" NEON aarch64

case $(uname -m) in
  aarch64 | arm64)
    echo "This machine has NEON: the other tests run its kernels already."
    exit 0
    ;;
esac
for tool in apt-get dpkg-deb; do
  command -v $tool > /dev/null || skip "the aarch64 Python comes from packages of Debian or Ubuntu, and there is no $tool here."
done
for tool in qemu-aarch64 aarch64-linux-gnu-g++; do
  command -v $tool > /dev/null || skip "$tool is missing (apt install qemu-user g++-aarch64-linux-gnu)."
done

set_up() {
  rm -rf "$here"
  mkdir -p "$here"/{root,apt/lists/partial,apt/archives/partial}
  : > "$here/apt/status" # no package is installed there, so that all that is needed is fetched
  local apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= -o Dir::State="$here/apt"
    -o Dir::State::status="$here/apt/status" -o Dir::Cache="$here/apt")
  echo "Fetching an aarch64 Python into $here (about 60 MB)"
  "${apt[@]}" update > "$here/apt/log" 2>&1 &&
    "${apt[@]}" install --yes --download-only --no-install-recommends python3 libpython3-dev libstdc++6 >> "$here/apt/log" 2>&1 || {
    cat "$here/apt/log"
    skip "apt-get could not fetch an arm64 Python from this system's package sources (its words are above)."
  }
  for package in "$here"/apt/archives/*.deb; do dpkg-deb --extract "$package" "$here/root"; done
  rm -rf "$here/apt"

  printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" "%s" "$@"\n' "$here/root" "$here/root/usr/bin/python3" > "$here/python"
  chmod +x "$here/python"
  # By this machine's pip, since an emulated one takes minutes; the platforms are those of wheels.
  sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' pyproject.toml > "$here/requirements.txt"
  "$bin/python" -m pip install --quiet --target "$here/site" --only-binary :all: --implementation cp \
    --python-version "$("$here/python" -c 'import platform; print(platform.python_version())')" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --requirement "$here/requirements.txt" pytest pytest-timeout
  "$bin/python" -m pip install --quiet cmake ninja pybind11
  touch "$here/ready"
}
[ "$here/ready" -nt tests/neon.sh ] || set_up

# Debian's pyconfig.h includes the platform's own by its name below usr/include, which comes after the compiler's own folders.
PATH=$bin:$PATH
headers=$("$here/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
cmake -S . -B build/aarch64 -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-idirafter $here/root/usr/include" \
  -DPython_EXECUTABLE="$here/python" -DPython_INCLUDE_DIR="$headers" \
  -Dpybind11_DIR="$("$bin/python" -m pybind11 --cmakedir)" > /dev/null
cmake --build build/aarch64
cmake --install build/aarch64 --prefix . > /dev/null

# Those that meet NEON, which -k tells by its name in a test's parameters, and the self-test. LOCALSFT_HOME: an empty cache, since a
# whole model takes too long here.
export PYTHONPATH=$here/site PYTHONDONTWRITEBYTECODE=1 LOCALSFT_HOME=$here/home LOCALSFT_ISA=neon LOCALSFT_TEST_PYTHON=$here/python
unset LOCALSFT_TEST_SMOLLM2
exec "$here/python" -m pytest -p no:cacheprovider -k 'neon or every_isa or symbols or selftest' "$@" \
  tests/kernels tests/engine/cpu tests/test_selftest.py
