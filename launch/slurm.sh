#!/usr/bin/env bash
# Trains on a Slurm cluster, over time limits and preemption, in the same workdir:
#   bash launch/slurm.sh [options] -- python -m big_vision_ext.train --config F --workdir DIR
# Options:
#   --nodes N            (default 1)
#   --gpus-per-node G    one process a GPU; without it, one process a node on its CPU
#   --cpus-per-task C    of each process
#   --time LIMIT         of one stretch; the run goes on after it (default: the partition's)
#   --name NAME          of the job (default: bve)
#   --max-requeues N     how often this script starts it again (default 100)
#   --sbatch=ARG         anything else for sbatch, e.g. --sbatch=--partition=gpu; may be repeated
#   --dry-run            print the sbatch and srun commands, submit nothing
# The workdir must be on a file system that all nodes share. The code is copied beside it, to
# WORKDIR.code/COMMIT, and every stretch runs that copy. The environment is .venv of this repository
# (bash launch/demo.sh makes one), or BVE_VENV.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }
quoted() { printf '%q ' "$@"; echo; }

# --- In the job: `--task` runs in every process, `--in-job` on the first node, once a stretch. ---
task() {
  # srun tells the largest exit code only; each process leaves its own in a file.
  local file="$2/$SLURM_PROCID" code=0
  shift 2
  # Slurm signals this shell along with what it runs, which is to say how it ends.
  trap : TERM
  "$@" &
  while kill -0 $! 2>/dev/null; do wait $! || true; done
  wait $! || code=$?
  echo "$code" >"$file.tmp"
  mv "$file.tmp" "$file"
  exit "$code"
}

# Sets SRUN to the command of a stretch: CODE_DIR EXIT_CODES_DIR ARGUMENTS...
srun_command() {
  local code="$1" codes="$2"
  shift 2
  # JAX finds the processes through Slurm's variables (train --distributed). Every process sees all
  # GPUs of its node and takes the one with its local number, so Slurm must not hand them out singly.
  SRUN=(srun --kill-on-bad-exit=0 --label "--export=ALL,PYTHONUNBUFFERED=1")
  if [ "$BVE_GPUS" -gt 0 ]; then SRUN+=(--gpu-bind=none); fi
  SRUN+=(bash "$code/launch/slurm.sh" --task "$codes" "${BVE_VENV:?}/bin/python" "$@")
}

asked="" reminder=""
# Asks all processes to save and end. Again and again: they may not have started yet. (srun itself, sent
# a SIGTERM, would have them killed half a minute later.)
save() {
  asked=limit
  echo "slurm.sh: the time limit is near: saving"
  while true; do scancel --signal=TERM "$SLURM_JOB_ID" || true; sleep 15; done &
  reminder=$!
}

job() {
  # Slurm sends USR1 before the time limit. It is not SIGTERM, which scancel and preemption send, to
  # the training as well: a job that its owner cancels must not come back, and one that is preempted
  # Slurm itself requeues.
  trap save USR1
  trap 'asked=${asked:-cancelled}' TERM
  local code="$2" workdir="$3" step ended=0 found=() outcome i
  shift 3
  cd "$code"
  local codes="$workdir.exit-codes/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
  mkdir -p "$codes"
  # Without this, jax would take to the CPU where it finds no GPU.
  if [ "$BVE_GPUS" -gt 0 ]; then export JAX_PLATFORMS=cuda,cpu; fi
  srun_command "$code" "$codes" "$@"
  echo "slurm.sh: stretch $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID on" \
    "$SLURM_JOB_NODELIST: $(quoted "${SRUN[@]}")"
  "${SRUN[@]}" &
  step=$!
  # A trapped signal ends `wait` early; the training then saves, which takes a while.
  while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done
  wait "$step" || ended=$?
  trap '' USR1
  [ -z "$reminder" ] || kill "$reminder"
  for ((i = 0; i < SLURM_NTASKS; i++)); do found+=("$(cat "$codes/$i" 2>/dev/null || echo none)"); done
  outcome="$("$BVE_VENV/bin/python" -m launch.outcome "${found[@]}")"
  echo "slurm.sh: the run is $outcome: exit codes $(printf '%s\n' "${found[@]}" | sort | uniq -c |
    awk '{printf "%s%s x %s", sep, $1, $2; sep = ", "}')"
  case "$outcome" in
    complete) exit 0 ;;
    "to be resumed")
      # Without the time limit or a 75, somebody cancels the job, Slurm preempts it, or the processes
      # were never started or were killed.
      if [ "$asked" != limit ] && [[ " ${found[*]} " != *" 75 "* ]]; then
        exit $((ended ? ended : 143))
      fi ;;
    *) exit $((ended ? ended : 1)) ;;
  esac
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$BVE_MAX_REQUEUES" ]; then
    echo "error: started again ${SLURM_RESTART_COUNT:-0} times, as often as --max-requeues allows" >&2
    exit 1
  fi
  echo "slurm.sh: job $SLURM_JOB_ID is queued again, to go on where it was"
  scontrol requeue "$SLURM_JOB_ID"
  # Slurm ends this job now; until it does, the script must not end with a code of its own.
  sleep 300
}

case "${1:-}" in
  --task) task "$@" ;;
  --in-job) job "$@" ;;
esac

# --- Outside: checks, copies the code, submits. ---
nodes=1 gpus=0 cpus="" limit="" name=bve requeues=100 dry="" extra=()
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; break ;;
    --dry-run) dry=1; shift; continue ;;
    --sbatch=*) extra+=("${1#--sbatch=}"); shift; continue ;;
    --*=*) option="${1%%=*}" value="${1#*=}"; shift ;;
    --*) option="$1" value="${2:-}"; shift; [ $# -eq 0 ] || shift ;;
    *) fail "$1: expected an option, or -- and the command" ;;
  esac
  case "$option" in
    --nodes) nodes="$value" ;;
    --gpus-per-node) gpus="$value" ;;
    --cpus-per-task) cpus="$value" ;;
    --time) limit="$value" ;;
    --name) name="$value" ;;
    --max-requeues) requeues="$value" ;;
    *) fail "unknown option $option; the head of launch/slurm.sh lists them" ;;
  esac
done
for pair in "--nodes:$nodes" "--gpus-per-node:$gpus" "--max-requeues:$requeues"; do
  [[ "${pair#*:}" =~ ^[0-9]+$ ]] || fail "${pair%%:*} ${pair#*:}: expected a number"
done
[ "$nodes" -gt 0 ] || fail "--nodes 0: expected 1 or more"
[[ $# -ge 3 && "$1 $2" =~ ^python[0-9.]*\ -m$ ]] ||
  fail "expected behind --: python -m big_vision_ext.train --config FILE[:args] --workdir DIR"
shift
arguments=("$@")
workdir=""
for i in "${!arguments[@]}"; do
  case "${arguments[$i]}" in
    --workdir=*) workdir="${arguments[$i]#*=}" ;;
    --workdir) workdir="${arguments[$((i + 1))]:-}" ;;
  esac
done
[ -n "$workdir" ] || fail "the command has no --workdir: a run that is interrupted goes on from there"
case "$workdir" in *://*) fail "--workdir $workdir: expected a directory that all nodes share" ;; esac
# Relative to where one is now, which is not where the copy of the code will be.
absolute="$(realpath -m "$workdir")"
for i in "${!arguments[@]}"; do
  case "${arguments[$i]}" in
    --workdir=*) arguments[i]="--workdir=$absolute" ;;
    --workdir) arguments[i + 1]="$absolute" ;;
  esac
done
tasks_per_node=$((gpus > 0 ? gpus : 1))
if [ "${arguments[1]}" = big_vision_ext.train ] && [ $((nodes * tasks_per_node)) -gt 1 ] &&
    [[ ! " ${arguments[*]} " =~ " --distributed " ]]; then
  arguments=("${arguments[@]:0:2}" --distributed "${arguments[@]:2}")
fi
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${BVE_VENV:-$ROOT/.venv}"
[ -x "$venv/bin/python" ] || fail "no environment at $venv: \`bash launch/test.sh\` makes .venv, or set" \
  "BVE_VENV to one that has requirements.txt (on GPUs also jax's CUDA plug-in)"

if [ -n "$dry" ]; then
  code="$absolute.code/COMMIT"
  echo "# the code is copied: cd $ROOT && $venv/bin/python -m launch.snapshot --to $absolute.code"
else
  code="$(cd "$ROOT" && "$venv/bin/python" -m launch.snapshot --to "$absolute.code")"
fi
export BVE_VENV="$venv" BVE_GPUS="$gpus" BVE_MAX_REQUEUES="$requeues"
SBATCH=(sbatch --parsable "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks_per_node"
  --requeue --signal=B:USR1@120 --open-mode=append "--output=$absolute.log" "--chdir=/"
  --export=ALL)
if [ "$gpus" -gt 0 ]; then SBATCH+=("--gpus-per-node=$gpus"); fi
if [ -n "$cpus" ]; then SBATCH+=("--cpus-per-task=$cpus"); fi
if [ -n "$limit" ]; then SBATCH+=("--time=$limit"); fi
SBATCH+=(${extra[@]+"${extra[@]}"} "$code/launch/slurm.sh" --in-job "$code" "$absolute" "${arguments[@]}")
if [ -n "$dry" ]; then
  echo "# submitted once:"
  quoted "${SBATCH[@]}"
  srun_command "$code" "$absolute.exit-codes/JOB" "${arguments[@]}"
  echo "# and in the job, each stretch, from $code:"
  quoted "${SRUN[@]}"
  exit 0
fi
mkdir -p "$(dirname "$absolute")"
id="$("${SBATCH[@]}")" || fail "sbatch refused the job (see above); nothing was submitted"
id="${id%%;*}"
cat <<TXT
job $id, code $(basename "$code")
  its log       tail -F $absolute.log
  how it is     squeue --job $id
  save and end  scancel --signal=TERM $id   (it does not come back)
  end at once   scancel $id
TXT
