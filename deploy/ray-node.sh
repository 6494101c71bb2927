#!/bin/sh
# A query node with a Ray node beside it: whoever uses a Ray cluster must have one of its nodes in the same container.
# The Ray node is started again when it ends, as it does when the head was away; Runnel does without it meanwhile.
set -eu
while :; do
    python3 -m ray.scripts.scripts start --address "$RAY_HEAD" --num-cpus 0 --disable-usage-stats --block \
        > /dev/null 2>&1 || true
    sleep 2
done &
exec runnel "$@"
