#!/usr/bin/env bash
# One machine of a training on several, without a scheduler. On each of them, with the same folder of the same disk:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 examples/cluster/torchrun.sh --base mine.yaml strategy/ddp.yaml --name mine
#
# NODE_RANK counts the machines, and MASTER_ADDR is the first one's address. GPUS is how many each of them has.
# DRY_RUN=1 shows the command. Started again, it goes on with the newest run of its name. The status is 75 where SIGTERM
# or SIGUSR1 came and all was saved: whatever watches over this script starts it again.
set -euo pipefail

NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-29500}
GPUS=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
if [ "$GPUS" -lt 1 ]; then
    echo "error: there is no GPU here: GPUS=2 ACCELERATOR=cpu tries it on the CPU" >&2
    exit 2
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600} # seconds to end the step and to save

# torchrun passes SIGTERM on, and makes another status of the training's: it is told here.
STATUS_FILE=$(mktemp)
export STATUS_FILE
trap 'rm -f "$STATUS_FILE"' EXIT
main_that_tells='import os, pathlib, sys
del sys.argv[0]
import main
main.let_threads_wait()
status = main.main()
if os.environ["LOCAL_RANK"] == "0":
    pathlib.Path(os.environ["STATUS_FILE"]).write_text(str(status))
sys.exit(status)'

command=("${PYTHON:-python}" -m torch.distributed.run --no-python
    --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS"
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"
    "${PYTHON:-python}" -c "$main_that_tells" main.py "$@" --accelerator "${ACCELERATOR:-gpu}" --devices "$GPUS" --num_nodes "$NODES" --resume auto)

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

stopped=""
"${command[@]}" &
torchrun=$!
trap 'stopped=1; kill -TERM "$torchrun"' TERM USR1
trap 'stopped=1; kill -INT "$torchrun"' INT
status=0
wait "$torchrun" || status=$?
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait` before the training has ended
    status=0
    wait "$torchrun" || status=$?
done
if [ -n "$stopped" ]; then
    told=$(cat "$STATUS_FILE") # nothing, where it did not come to its end: saving failed, say
    if [ "$NODE_RANK" -ne 0 ] && [ "$told" = 0 ]; then
        told=75 # the first machine alone knows more than that all went well
    fi
    status=${told:-$status}
    if [ "$status" -eq 0 ] && [ -z "$told" ]; then
        status=1
    fi
fi
exit "$status"
