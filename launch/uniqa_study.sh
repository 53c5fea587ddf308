#!/usr/bin/env bash
# What is contrastive pretraining on captions of quality worth? Photographs distorted at graded
# strengths, reference-disjoint: zero-shot, adapters from a few labels and a linear probe, with the
# pretrained towers and with random ones, mean and deviation over seeds. `bash launch/uniqa_study.sh
# 0 1 2` takes these seeds (the default), each with a split of its own. About half an hour on two
# slow cores; interrupted anywhere, or run again, it goes on from what is there.
#
# STEPS, CROPS, LABELS and OUT change its size: STEPS=20 CROPS=2 LABELS=25 is a smoke run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"

STEPS=${STEPS:-600}
CROPS=${CROPS:-4}
LABELS=${LABELS:-50 200}
OUT=${OUT:-runs/uniqa_study}
DATA=${DATA:-data/distorted}
[ $# -gt 0 ] || set -- 0 1 2

step() { printf '\n== %s\n' "$1"; }

"$PY" -m input_pipeline.build --from distorted --out "$DATA"
for seed in "$@"; do
  split=$((seed + 1))
  for towers in pretrained random; do
    clip=$OUT/clip_${towers}_$seed features=$OUT/features_${towers}_$seed
    # One step at a rate of zero leaves the towers as they begin.
    how=(); [ "$towers" = pretrained ] || how=(--config.total_steps=1 --config.lr=0
      --config.schedule.warmup_steps=0)
    step "Seed $seed: $towers towers"
    "$PY" -m big_vision_ext.train --workdir "$clip" \
      --config "configs/uniqa/demo.py:data=$DATA,split=$split,steps=$STEPS,seed=$seed" ${how[@]+"${how[@]}"}
    [ -f "$features/features.json" ] || "$PY" -m big_vision_ext.cache_features --weights "$clip" \
      --data "$DATA" --out "$features" --crops "$CROPS" --eval-crops five_crop --batch 128
    for labels in $LABELS; do
      step "Seed $seed: $towers towers, an adapter from $labels labels"
      "$PY" -m big_vision_ext.train --workdir "$OUT/adapter_${towers}_${labels}_$seed" --config \
"configs/uniqa/adapter.py:dataset=other,data=$DATA,features=$features,split=$split,labels=$labels,\
seed=$seed"
    done
  done
done

step "SRCC on photographs that were not trained on"
"$PY" -m launch.uniqa_table "$OUT" --labels $LABELS --seeds "$@"
