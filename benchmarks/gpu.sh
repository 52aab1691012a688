#!/bin/sh
# All that a GPU is needed for, in one run that should take less than eight minutes: sh benchmarks/gpu.sh [folder for the JSON files]
set -u
out=${1:-benchmarks}
python=${PYTHON:-python}
status=0
run() { echo "+ $*"; "$@" || status=1; }
synthetic() {
    name=$1
    shift
    run "$python" scripts/benchmark.py --synthetic "$name" "$@" --json "$out/synthetic-$name-cuda.json"
}
run "$python" -m pytest -q -p no:cacheprovider -n 4 tests/test_kernels.py tests/test_kernels_layers.py tests/test_replayed.py tests/test_runners.py
run "$python" scripts/benchmark_kernels.py --json "$out/kernels-cuda.json"
synthetic llamagen-xl --batches 1,8,32 --modes off,auto --steps 12
synthetic llamagen-3b --batches 1,8 --modes off,auto --steps 12
synthetic lumina-7b --modes off,auto --steps 12
synthetic var-d30 --modes off,auto
synthetic mar-huge --modes off,auto
run "$python" scripts/benchmark.py --synthetic llamagen-xl --widths 1,32 --modes compile --json "$out/synthetic-llamagen-xl-cuda-compile.json"
exit $status
