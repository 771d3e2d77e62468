#!/usr/bin/env bash
# A training on several machines of a SLURM cluster, which goes on by itself when its time is up:
#
#   sbatch examples/cluster/slurm.sh --base mine.yaml strategy/ddp.yaml --name mine
#
# Run it in the project's folder, on a disk that all machines share. DRY_RUN=1 bash examples/cluster/slurm.sh … shows
# the command.
#SBATCH --job-name=stablesr-edge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# ntasks-per-node: one process per GPU. signal: ten minutes before the end all processes are asked to save and to stop.
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# --wait: what still runs two minutes after a first process has ended hangs, and is ended.
command=(srun --wait=120 "${PYTHON:-python}" main.py "$@"
    --devices "${SLURM_NTASKS_PER_NODE:-4}" --num_nodes "${SLURM_JOB_NUM_NODES:-2}" --resume auto)

if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

trap : TERM USR1 # meant for the processes; this shell is to see how they end
"${command[@]}" &
status=0
wait $! || status=$?
while kill -0 $! 2>/dev/null; do # a signal ends `wait` before the training has ended
    status=0
    wait $! || status=$?
done

if [ "$status" -eq 75 ]; then # all is saved: the next turn goes on from there
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
