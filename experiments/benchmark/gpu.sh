#!/usr/bin/env bash
# Everything that is to be measured on an NVIDIA GPU, in one command, meant for less than ten minutes:
#
#     experiments/benchmark/gpu.sh [FOLDER]
#
# writes FOLDER/{float32,tf32,bfloat16}.json and prints the tables (default folder: runs/benchmark). Targets on an H200:
# cifar10-ipc50 at most 3 ms per iteration and 20 times the peer; 20 networks evaluated in at most a minute.
# PEER= leaves the peer out. CASES, PRECISIONS and OPTIONS may be set to try it elsewhere, for example on a CPU:
#
#     CASES="tiny-ipc1" PRECISIONS=float32 OPTIONS="--network.width 8 --seconds 0.2" experiments/benchmark/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/benchmark}
PEER=${PEER-torch}
if [ -z "${OPTIONS:-}" ]; then  # it is to be the GPU that is measured
  python3 -c 'import jax; assert jax.default_backend() == "gpu"' || { echo 'jax sees no GPU: pip install "jax[cuda12]"' >&2; exit 2; }
  [ -z "$PEER" ] || python3 -c 'import torch; assert torch.cuda.is_available()' || { echo 'PyTorch sees no GPU: install its CUDA build' >&2; exit 2; }
fi
mkdir -p "$out"
cases=${CASES:-cifar10-ipc10 cifar10-ipc50 mnist-ipc1 evaluate-cifar10-ipc50}
flags=()
for case in $cases; do flags+=(--case "$case"); done
for precision in ${PRECISIONS:-bfloat16 tf32 float32}; do
  more=()
  # The peer of gradient matching has no bfloat16.
  if [ -z "${CASES:-}" ] && [ "$precision" != bfloat16 ]; then more=(--case dsa-cifar10-ipc1); fi
  # shellcheck disable=SC2086
  python3 -m dmjax.benchmark "${flags[@]}" ${more[@]+"${more[@]}"} --network.precision "$precision" ${PEER:+--peer "$PEER"} --json "$out/$precision.json" ${OPTIONS:---seconds 1 --blocks 3}
done
# Classes one after another against all at once, which `auto` takes on a GPU, by what its compiler makes of both.
if [ -z "${CASES:-}" ]; then
  for chunk in 1 5; do
    python3 -m dmjax.benchmark --case cifar10-ipc10 --case cifar10-ipc50 --class-chunk "$chunk" --json "$out/class_chunk_$chunk.json" --seconds 1 --blocks 3
  done
fi
