#!/usr/bin/env bash
# Slurm: one task a node, one process a GPU. A process that dies is started again, and a node that fails is gone without.
#
#   sbatch examples/slurm.sh --catalog photos.arrow --boxes boxes.arrow --crops obj-obj+dilate --device cuda --output runs/a
#
# MIN_NODES nodes are enough to go on with (all, if it is not set); batch_size and bn_groups must then be multiples of
# each number of processes there may be. The first node holds the meeting point and must live, else the job is requeued.
# Slurm sends SIGTERM before the time is up: the run saves itself, and goes on when the same line is submitted again.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=128
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head: it would end scontrol by SIGPIPE
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150           # seconds in which a run may save itself; torchrun's 30 may be few
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1         # else torchrun's agents do not meet again when nodes go or come
srun --no-kill --kill-on-bad-exit=0 "${PYTHON:-python3}" -m torch.distributed.run \
  --nnodes "${MIN_NODES:-$SLURM_NNODES}:$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
  -m objcrop pretrain "$@" --resume auto
