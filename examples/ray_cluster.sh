#!/usr/bin/env bash
# Index, propose and measure on several machines by Ray (`pip install objcrop[ray]` on each, the same version).
#
#   HEAD=10.0.0.1 bash examples/ray_cluster.sh head        # on machine 10.0.0.1
#   HEAD=10.0.0.1 bash examples/ray_cluster.sh machine     # on each of the others, at any time; they may go again
#   HEAD=10.0.0.1 bash examples/ray_cluster.sh propose photos.arrow --method edge-boxes -o boxes.arrow    # on one of them
#
# Catalog and images must lie at the same paths everywhere, or in a bucket. `head` and `machine` last until Ctrl-C.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0
at="${HEAD:?address of the first machine}:${PORT:-6379}"
case "${1:?head, machine, or a command of objcrop}" in
  head) exec ray start --head --port "${PORT:-6379}" --node-ip-address "$HEAD" --include-dashboard false --block ;;
  machine) exec ray start --address "$at" --block ;;
  *) exec "${PYTHON:-python3}" -m objcrop "$@" --ray "$at" ;;
esac
