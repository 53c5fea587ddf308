#!/usr/bin/env bash
# What PS3's switches beyond the original gain on the sample data: `bash launch/switches.sh [JOBS]`.
#
# Eight runs of the demo, each with a seed of its own. Each switch is on in four of them, and any two
# are on together in two: half of the 2^4 combinations, those where an even number is on. The effects
# are fitted to these and to runs/demo. Then a later-looks policy is added to runs/demo. Interrupted,
# it goes on. JOBS=2 trains two at a time, on a core each (Linux), which uses two cores better. STEPS in
# the environment shortens the runs, which are then compared without runs/demo.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"
export PY STEPS="${STEPS:-1200}"
"$PY" -m input_pipeline.build --from sample --out data/sample

# Arguments: a seed, then the settings that are on. SLOT is the number of the core, if it has one.
train() {
  local seed=$1
  shift
  local workdir=runs/switches/seed$seed pin=()
  [ -f "$workdir/evaluation.json" ] && return
  [ -n "${SLOT:-}" ] && pin=(taskset -c "$SLOT")
  echo "seed $seed: ${*:-as published}"
  mkdir -p "$workdir"
  # Training evaluates at its end, as the config says.
  ${pin[@]+"${pin[@]}"} "$PY" -m big_vision_ext.train --config "configs/ps3/demo.py:steps=$STEPS" \
    --config.seed="$seed" --workdir "$workdir" "${@/#/--config.model.image.}" \
    >"$workdir.log" 2>&1 || { echo "error: seed $seed failed, see $workdir.log" >&2; return 255; }
}
export -f train

A=low_antialias=true B=selection_antialias=true C=selection_maps=each D=budget_rule=cells
jobs=(-P 1)
[ "${1:-1}" -gt 1 ] && jobs=(-P "$1" --process-slot-var=SLOT)
xargs "${jobs[@]}" -L 1 bash -c 'train "$@"' train <<END
10
11 $A $B
12 $A $C
13 $B $C
14 $A $D
15 $B $D
16 $C $D
17 $A $B $C $D
END

"$PY" -m big_vision_ext.train --config configs/ps3/demo.py --workdir runs/demo
runs=(runs/switches/seed1?)
[ "$STEPS" = 1200 ] && runs=(runs/demo "${runs[@]}")
"$PY" -m big_vision_ext.evaluate --workdir "${runs[0]}" --compare "${runs[@]:1}" --effects

for seed in 0 1 2; do
  workdir=runs/switches/policy$seed
  "$PY" -m big_vision_ext.train --config configs/ps3/demo.py:steps=200 \
    --workdir "$workdir" --config.seed="$seed" --config.model.image.look_policy=true \
    --config.init.path=runs/demo --config.init.allow_missing="('img/later_looks/.*',)" \
    --config.optim.freeze="('img/(?!later_looks).*','txt/.*','prompt_proj/.*','t','b')" \
    --config.evals.select.type=selection_quality --config.evals.select.input.split=val
done
"$PY" -m big_vision_ext.evaluate --workdir runs/switches/policy0 \
  --compare runs/switches/policy{1,2} --mean
