#!/bin/bash
# A run on several nodes under Slurm. Edit the lines marked with <-- and submit it from the folder that holds `data/`:
#   sbatch slurm.sh configs/ldis1.yaml
# More configs and options of `ldis fit` may follow the first: sbatch slurm.sh configs/ldis1.yaml --trainer.max_steps 1000
#SBATCH --job-name=ldis
#SBATCH --nodes=2                 # <-- machines
#SBATCH --ntasks-per-node=8       # <-- one task for each GPU of a machine
#SBATCH --gpus-per-node=8         # <-- the same number; without GPUs, leave it out
#SBATCH --cpus-per-task=12        # <-- data workers (data.num_workers) and some to spare
#SBATCH --time=48:00:00           # <--
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append        # a requeued job writes on
#SBATCH --signal=USR1@120         # <-- seconds before the time is up at which all tasks save a checkpoint and leave
#SBATCH --requeue                 # after a node has failed or the job was preempted, go on from the last checkpoint
set -euo pipefail

STRATEGY=configs/cluster/ddp.yaml   # <-- or configs/cluster/fsdp.yaml, where the U-Net's states do not fit a GPU
# source /path/to/environment/bin/activate   # <-- where `ldis` is installed

if [[ $# -lt 1 ]]; then
    echo "usage: sbatch slurm.sh CONFIG [options of ldis fit]" >&2
    exit 2
fi
CONFIG=$1
shift

# A requeued job has the same number: it finds its own folder again, and in it the last checkpoint, if there is one yet.
status=0
srun --kill-on-bad-exit=1 ldis fit --config "$CONFIG" --config "$STRATEGY" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.logger.version "slurm_$SLURM_JOB_ID" --ckpt_path last "$@" || status=$?
if [[ $status -eq 75 ]]; then # a signal has stopped it, with a checkpoint: there is more to do
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
