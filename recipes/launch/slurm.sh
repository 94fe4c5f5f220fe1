#!/bin/bash
# One job over several machines:
#   sbatch recipes/launch/slurm.sh recipes/sft_gpt2_lora.py train.output_dir=/shared/runs/sft
# Slurm starts one launcher per machine, each launcher one process per GPU. SIGTERM comes two minutes
# before the time limit: the run finishes its step, saves and ends. Submit the same command
# with --resume, or once with `sbatch --requeue`, and it goes on.
#SBATCH --job-name=sft_kit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log

set -euo pipefail

: "${1:?usage: sbatch recipes/launch/slurm.sh recipes/<recipe>.py [section.key=value ...]}"

config=${LAUNCH_CONFIG:-recipes/launch/nodes.yaml}
per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))

resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    resume=(--resume)
fi

# SLURM_NODEID is known on each machine only, so its shell fills it in.
# shellcheck disable=SC2016
exec srun --kill-on-bad-exit=1 bash -c '
    config=$1 machines=$2 processes=$3 address=$4 port=$5
    shift 5
    exec accelerate launch --config_file "$config" --num_machines "$machines" \
        --num_processes "$processes" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$address" --main_process_port "$port" "$@"
' launch "$config" "$SLURM_JOB_NUM_NODES" "$((SLURM_JOB_NUM_NODES * per_node))" "${machines[0]}" \
    "$port" "$@" ${resume[@]+"${resume[@]}"}
