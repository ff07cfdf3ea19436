#!/usr/bin/env bash
# Slurm: one task a node, one process a GPU.
#
#   sbatch examples/slurm.sh --catalog photos.arrow --boxes boxes.arrow --crops obj-obj+dilate --device cuda --output runs/a
#
# Slurm sends SIGTERM before the time is up: the run saves itself, and --requeue starts it again with --resume.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=128
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head: it would end scontrol by SIGPIPE
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then resume=(--resume); fi
srun "${PYTHON:-python3}" -m torch.distributed.run \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
  -m objcrop pretrain "$@" ${resume[@]+"${resume[@]}"}
