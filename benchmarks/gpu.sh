#!/bin/sh
# All that a GPU is needed for, in one run that should take less than eight minutes: sh benchmarks/gpu.sh [folder for the JSON files]
set -u
out=${1:-benchmarks}
python=${PYTHON:-python}
status=0
run() { echo "+ $*"; "$@" || status=1; }
run "$python" -m pytest -q -p no:cacheprovider tests/test_kernels.py tests/test_fast.py
run "$python" scripts/benchmark_kernels.py --json "$out/kernels-cuda.json"
for shape in llamagen-xl llamagen-3b lumina-7b; do
    run "$python" scripts/benchmark.py --synthetic $shape --batches 1,8 --modes off,auto --json "$out/synthetic-$shape-cuda.json"
done
run "$python" scripts/benchmark.py --synthetic llamagen-xl --widths 1,32 --modes compile --json "$out/synthetic-llamagen-xl-cuda-compile.json"
exit $status
