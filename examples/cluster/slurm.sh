#!/bin/bash
# Slurm: sbatch slurm.sh run.toml. One Ray node for each node of the job; `output` on a disk that all share.
# Killed, preempted or out of time: submit it again, it goes on where it was.
#SBATCH --job-name=targetsmith
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
run_file=$(realpath "${1:?usage: sbatch slurm.sh run.toml}")
. "${TARGETSMITH_VENV:-$HOME/targetsmith/.venv}/bin/activate" # the same path on every node

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):$port"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port="$port" --block &
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$node" ray start --address="$address" --block &
done
for _ in $(seq 60); do # until all nodes have joined; later ones are used, too
    alive=$(ray status --address "$address" 2>/dev/null | grep -c "node_" || true)
    [ "$alive" -ge "${#nodes[@]}" ] && break
    sleep 5
done
srun --overlap --nodes=1 --ntasks=1 -w "$head" targetsmith score "$run_file" --address "$address"
