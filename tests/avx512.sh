#!/usr/bin/env bash
# Tests of the AVX-512 kernels, in float32 and in bfloat16, on an x86-64 machine without AVX-512: each of their intrinsics is computed by
# SIMDe in AVX2. Tells whether they are right, nothing of their speed or of the code that a compiler makes of them.
#
# .venv/avx512 holds SIMDe (out of its package of this Debian or Ubuntu, fetched by apt-get and not installed: root is not needed), the build
# and a copy of the tree with it. Exit status 77: nothing was tested, for the reason that is printed.
. "$(dirname "${BASH_SOURCE[0]}")/elsewhere.sh" AVX-512 avx512

[ "$(uname -sm)" = "Linux x86_64" ] || skip "they are emulated on Linux on x86-64 only; this is $(uname -sm)."
grep -q -w avx2 /proc/cpuinfo || skip "they are emulated with AVX2, which this processor has not."
if grep -q -w avx512_bf16 /proc/cpuinfo; then
  echo "This machine has AVX512-BF16: the other tests run these kernels already."
  exit 0
fi
for tool in apt-get dpkg-deb g++; do
  command -v $tool > /dev/null || skip "$tool is missing: SIMDe comes from a package of Debian or Ubuntu (libsimde-dev), and GCC compiles it."
done

if [ ! "$here/ready" -nt tests/avx512.sh ]; then
  rm -rf "$here"
  mkdir -p "$here/simde"
  (cd "$here/simde" && apt-get -qq -o APT::Sandbox::User= download libsimde-dev && dpkg-deb --extract libsimde-dev_*.deb .) \
    > "$here/log" 2>&1 || {
    cat "$here/log"
    skip "apt-get could not fetch libsimde-dev from this system's package sources (its words are above)."
  }
  "$bin/python" -m pip install --quiet cmake ninja pybind11
  touch "$here/ready"
fi

# Not below build/: those objects are looked at for what they export and need.
PATH=$bin:$PATH
cmake -S . -B "$here/build" -G Ninja -DCMAKE_CXX_COMPILER=g++ -DLOCALSFT_EMULATE_AVX512="$here/simde/usr/include" \
  -DPython_EXECUTABLE="$bin/python" -Dpybind11_DIR="$("$bin/python" -m pybind11 --cmakedir)" > /dev/null
cmake --build "$here/build"
rm -rf "$here/tree"
mkdir "$here/tree"
cp -R pyproject.toml localsft models examples tests "$here/tree"
rm -f "$here"/tree/localsft/_core*
cmake --install "$here/build" --prefix "$here/tree" > /dev/null
cd "$here/tree"

# The kernels' tests go through both by themselves; the model's run on the ISA that they are told.
"$bin/python" -m pytest -k avx512 tests/kernels "$@"
for isa in avx512 avx512bf16; do
  LOCALSFT_ISA=$isa "$bin/python" -m pytest tests/engine/cpu tests/test_selftest.py "$@"
done
