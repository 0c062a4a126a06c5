#!/usr/bin/env bash
# Everything that is to be measured on a Cloud TPU, in one command, meant for less than ten minutes:
#
#     experiments/benchmark/tpu.sh [FOLDER]
#
# writes FOLDER/{bfloat16,float32}.json and prints the tables (default folder: runs/benchmark). What the compiler
# estimates for the same cases is in docs/performance.md. Without a peer unless PEER=torch is set.
# CASES, PRECISIONS and OPTIONS may be set to try it elsewhere, for example on a CPU:
#
#     CASES="tiny-ipc1" PRECISIONS=float32 OPTIONS="--network.width 8 --seconds 0.2" experiments/benchmark/tpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/benchmark}
if [ -z "${OPTIONS:-}" ]; then  # it is to be the TPU that is measured
  python3 -c 'import jax; assert jax.default_backend() == "tpu"' || { echo 'jax sees no TPU: pip install "jax[tpu]"' >&2; exit 2; }
fi
mkdir -p "$out"
cases=${CASES:-cifar10-ipc10 cifar10-ipc50 mnist-ipc1 dsa-cifar10-ipc1 evaluate-cifar10-ipc50}
flags=()
for case in $cases; do flags+=(--case "$case"); done
for precision in ${PRECISIONS:-bfloat16 float32}; do
  # shellcheck disable=SC2086
  python3 -m dmjax.benchmark "${flags[@]}" --network.precision "$precision" ${PEER:+--peer "$PEER"} --json "$out/$precision.json" ${OPTIONS:---seconds 1 --blocks 3}
done
# Classes one after another against all at once; `auto` takes what was the least by the compiler's estimate for a v5e.
if [ -z "${CASES:-}" ]; then
  for chunk in 1 5 10; do
    python3 -m dmjax.benchmark --case cifar10-ipc10 --case cifar10-ipc50 --class-chunk "$chunk" --json "$out/class_chunk_$chunk.json" --seconds 1 --blocks 3
  done
fi
