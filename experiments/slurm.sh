#!/usr/bin/env bash
#SBATCH --job-name=dmjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One process a GPU; they find each other through Slurm. --workdir must be on a file system that the first node keeps:
# only the first process writes. Slurm's SIGTERM saves a checkpoint, and the same job again goes on from it.
#
#     sbatch experiments/slurm.sh experiments/tiny_imagenet.py --workdir /shared/runs/tiny_imagenet
set -euo pipefail
srun python -m dmjax.condense --config "$@" --progress false
