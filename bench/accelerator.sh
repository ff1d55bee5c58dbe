#!/usr/bin/env bash
# What an accelerator is lent for, in under eight minutes: parity first, then times, then training.
#
#     bench/accelerator.sh OUT                          # on a CUDA machine
#     bench/accelerator.sh OUT --device cpu --quick     # the same code, small, where there is none
#
# Writes parity.json, step.json and training.json into OUT. PYTHON names the interpreter. Times are taken
# even where a case is off, and the exit code tells whether any was.
set -uo pipefail

out=${1:?usage: bench/accelerator.sh OUT [--device cpu] [--quick]}
shift
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"

status=0
"$python" "$here/accelerator.py" parity "$@" --out "$out/parity.json" || status=1
"$python" "$here/accelerator.py" step "$@" --out "$out/step.json" || status=1
"$python" "$here/accelerator.py" training "$@" --out "$out/training.json" || status=1
exit $status
