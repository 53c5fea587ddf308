#!/usr/bin/env bash
# Does conditioning on what a frozen CLIP sees beat its controls, and meta-trained adaptation plain
# fine-tuning? Procedural domains and photographs' crops; one domain is left out and adapted to.
# `bash launch/cdasr_study.sh 0 1 2` takes these seeds (the default). Hours on two slow
# cores; interrupted anywhere, or run again, it goes on from what is there.
#
# A small CLIP is trained on distorted photographs (configs/uniqa/demo.py), or TOWER names another
# one. From each seed: the controls - no encoder, a constant vector, another
# picture's vector, the picture's own - and from the last one META steps of meta-training, and as
# many of plain training on the same batches. The tables compare pictures one by one.
#
# STEPS, META, TOWER_STEPS, CROPS, VAL, WIDTH, DEPTH, SIZE, EVAL_SIZE, SCALE, SHOTS, RATE, HELD_OUT,
# DATA and OUT change its size; one OUT is of one size. This is a smoke run:
#   STEPS=20 META=5 TOWER_STEPS=30 CROPS=16 VAL=12 SHOTS=5 OUT=runs/cdasr_smoke \
#     bash launch/cdasr_study.sh 0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

STEPS=${STEPS:-3000}
META=${META:-600}
TOWER_STEPS=${TOWER_STEPS:-300}
CROPS=${CROPS:-256}
VAL=${VAL:-32}
WIDTH=${WIDTH:-24}
DEPTH=${DEPTH:-4}
SIZE=${SIZE:-64}
EVAL_SIZE=${EVAL_SIZE:-96}
SCALE=${SCALE:-4}
SHOTS=${SHOTS:-1+5+10}
RATE=${RATE:-0.01}
HELD_OUT=${HELD_OUT:-comics}
DATA=${DATA:-data/cdasr_study_${CROPS}_$VAL}
OUT=${OUT:-runs/cdasr_study}
[ $# -gt 0 ] || set -- 0 1 2

one_size "$OUT" STEPS META TOWER_STEPS CROPS VAL WIDTH DEPTH SIZE EVAL_SIZE SCALE SHOTS RATE HELD_OUT \
  DATA TOWER
setup_env

step() { printf '\n== %s\n' "$1"; }
train() { "$PY" -m big_vision_ext.train --workdir "$1" --config "$2"; }

domains=
for category in faces natural urban comics; do
  "$PY" -m input_pipeline.build --from backgrounds --category "$category" \
    --count "$CROPS" --val-count "$VAL" --out "$DATA/$category"
  [ "$category" = "$HELD_OUT" ] || domains="$domains${domains:++}$category"
done
if [ -z "${TOWER:-}" ]; then
  TOWER=$OUT/tower
  step "A small CLIP"
  "$PY" -m input_pipeline.build --from distorted --out data/distorted
  train "$TOWER" "configs/uniqa/demo.py:data=data/distorted,steps=$TOWER_STEPS"
fi

common="tower=$TOWER,scale=$SCALE,width=$WIDTH,depth=$DEPTH,size=$SIZE,eval_size=$EVAL_SIZE,\
hidden=128,semantic=64,data=$DATA,domains=$domains,held_out=$HELD_OUT,each"
for seed in "$@"; do
  for condition in none constant shuffled encoder; do
    step "Seed $seed: condition $condition"
    train "$OUT/${condition}_$seed" "configs/cdasr/train.py:$common,condition=$condition,\
steps=$STEPS,seed=$seed,batch=16,lr=5e-4"
  done
  for inner in 0 5; do
    name=$([ "$inner" = 0 ] && echo plain || echo meta)
    step "Seed $seed: $name training on top"
    train "$OUT/${name}_$seed" "configs/cdasr/meta.py:$common,base=$OUT/encoder_$seed:ema,\
inner=$inner,rate=$RATE,anneal=$((META / 2)),steps=$META,seed=$seed,shots=$SHOTS"
  done
done

step "PSNR-Y on pictures that were not trained on"
"$PY" -m launch.cdasr_table "$OUT" --shots "$SHOTS" --seeds "$@"
