#!/bin/bash
# A program on SLURM: Ray on each host of the job, the program on the first.
#SBATCH --job-name=r2d2-pong
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120  # two minutes before the end, the program saves
#SBATCH --requeue            # after a lost host the job starts again, and resumes
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"  # a checkout on a file system that all hosts share
PATH="$PWD/.venv/bin:$PATH"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_USAGE_STATS_ENABLED=0

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray start --block --head \
  --node-ip-address="$ip" --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" &
sleep 20
if [ "$SLURM_NNODES" -gt 1 ]; then
  srun --overlap --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) \
    --exclude="$head" ray start --block --address="$ip:6379" \
    --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

# In the background, so that this shell hears SIGTERM and passes it on.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  python launch/atari_distributed.py --ray_address="$ip:6379" --game=pong \
  --num_actors=56 --workdir=runs/pong --max_actor_steps=50000000 &
program=$!
trap 'kill -TERM $program' TERM
code=0
wait $program || code=$?
if kill -0 $program 2>/dev/null; then code=0; wait $program || code=$?; fi
exit $code
