#!/usr/bin/env bash
# Several machines without a scheduler: run this on each of them, with NODE_RANK 0, 1, …
#
#   HEAD=10.0.0.1 NODES=2 NODE_RANK=0 bash examples/multi_node.sh --catalog photos.arrow --boxes boxes.arrow \
#       --crops obj-obj+dilate --device cuda --output runs/a
#
# HEAD is the address of machine 0, GPUS the processes a machine (one a GPU). Catalog, boxes and images must lie at the
# same paths everywhere; the run folder is written by machine 0 and must be read by all to --resume.
set -euo pipefail
exec "${PYTHON:-python3}" -m torch.distributed.run \
  --nnodes "${NODES:?how many machines}" --node-rank "${NODE_RANK:?which machine this is, from 0}" \
  --nproc-per-node "${GPUS:-8}" --master-addr "${HEAD:?address of machine 0}" --master-port "${PORT:-29500}" \
  -m objcrop pretrain "$@"
