# Sourced by the tests that run another machine's kernels on this one: elsewhere.sh KERNELS FOLDER. Goes to the root of the
# checkout; $bin is its environment, $here the folder in .venv for what these tests need. `skip` ends with the exit status 77.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kernels=$1
bin=$PWD/.venv/bin
here=$PWD/.venv/$2

skip() {
  echo "$kernels TESTS SKIPPED: $1"
  exit 77
}
