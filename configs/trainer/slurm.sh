#!/bin/bash
# Trains a recipe as a SLURM job: one task for each GPU of each node.
#
#   sbatch configs/trainer/slurm.sh RECIPE.yaml [--data.root=PATH ...]
#   sbatch --nodes=4 --time=48:00:00 configs/trainer/slurm.sh RECIPE.yaml
#
# Submit it from the root of the repository, with the environment active in which the package is
# installed; adapt partition and account to your cluster. USR1 comes two minutes before the time of
# the job is over: a checkpoint is written, the job put back into the queue, and the run goes on there
# (docs/checkpoints.md). Submit another run of the same recipe with a --name of its own.
#SBATCH --job-name=spanet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=spanet-%j.log

set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch configs/trainer/slurm.sh RECIPE.yaml [--KEY=VALUE ...]" >&2
  exit 2
fi
recipe=$1
shift

srun python -m spanet_lightning fit \
  --config "$recipe" --config configs/trainer/slurm.yaml \
  --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" \
  --resume=auto "$@"
