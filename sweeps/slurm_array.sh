#!/bin/bash
# Runs one study in several jobs: each is a supervisor on its own GPUs, and all share the queue in
# one PostgreSQL database. Needs a folder that all nodes see (checkpoints are resumed anywhere), and
# the password in ~/.pgpass.
#
#   STUDY=sweeps/imagenet/v2_srf.yaml URL=postgresql://sweeper@db/sweeps \
#     sbatch --array=0-7 sweeps/slurm_array.sh --data.root=/data/imagenet
#
# A job that is cut off or killed puts its trials back: submit the array again, or requeue it.
#SBATCH --job-name=sweep
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
# One supervisor a job; it ends with a checkpoint of its trials 120 s before the job does.
exec spanet sweep run "$STUDY" --storage "$URL" --workers "${WORKERS:-1}" "$@"
