#!/usr/bin/env bash
# Repeats the demo's training with other seeds and prints the table of the README: mean and standard
# deviation over the seeds. `bash launch/demo_seeds.sh 1 2` adds seeds 1 and 2 to the demo's own (0).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"

DATA=data/sample
"$PY" -m input_pipeline.build --from sample --out "$DATA"
runs=()
for seed in 0 "$@"; do
  suffix=$([ "$seed" = 0 ] || echo "_seed$seed")
  for pair in "siglip/demo_lowres demo_lowres" "ps3/demo demo"; do
    read -r config name <<<"$pair"
    workdir=runs/$name$suffix
    "$PY" -m big_vision_ext.train --config "configs/$config.py:data=$DATA" --config.seed="$seed" \
      --workdir "$workdir"
    [ -f "$workdir/evaluation.json" ] || "$PY" -m big_vision_ext.evaluate --workdir "$workdir"
    runs+=("$workdir")
  done
done
"$PY" -m big_vision_ext.evaluate --workdir "${runs[0]}" --compare "${runs[@]:1}"
"$PY" -m big_vision_ext.evaluate --workdir "${runs[0]}" --compare "${runs[@]:1}" --mean
