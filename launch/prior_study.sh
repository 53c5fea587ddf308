#!/usr/bin/env bash
# Does a content prior restore the removal of rain that was never trained on? An autoencoder of clean
# pictures, adapted to few pairs under a narrow range of rain, with a skip of weight w; beside it a
# plain network, the same network from pairs alone, a prior of another category and one without codes.
# `bash launch/prior_study.sh 0 1 2` takes these seeds (default 0). About nine minutes of one slow core
# for each seed; interrupted anywhere, or run again, it goes on from what is there.
#
# STEPS (of the first stage; the others take their share), N, RANGE, CATEGORY, OTHER, DATA and OUT
# change it: STEPS=4 OUT=runs/prior_smoke is a smoke run. Runs of other settings need an OUT of their
# own: `OUT/settings` says of which they are.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

STEPS=${STEPS:-200}
N=${N:-64}
RANGE=${RANGE:-small}
CATEGORY=${CATEGORY:-urban}
OTHER=${OTHER:-faces}
DATA=${DATA:-data/prior_study}
OUT=${OUT:-runs/prior_study}
[ $# -gt 0 ] || set -- 0

one_size "$OUT" STEPS N RANGE CATEGORY OTHER DATA
setup_env

CONFIG=configs/derain/prior.py:tiny
PAIRS="data=$DATA/$CATEGORY,n=$N,range=$RANGE"

# run NAME ARGUMENTS [OVERRIDES...]: trains and evaluates, unless that is done.
run() {
  local name=$OUT/$1_$seed arg=$2
  shift 2
  [ ! -f "$name/evaluation.json" ] || return 0
  printf '\n== %s\n' "$name"
  "$PY" -m big_vision_ext.train --workdir "$name" --config "$arg" "$@"
}

for category in "$CATEGORY" "$OTHER"; do
  [ -f "$DATA/$category/dataset.json" ] || "$PY" -m input_pipeline.build --from backgrounds \
    --category "$category" --side 48 --count 512 --val-count 16 --out "$DATA/$category"
done
for seed in "$@"; do
  more="seed=$seed,steps=$((STEPS * 3 / 4))" start="seed=$seed,steps=$STEPS"
  # The prior's clean pictures are all of them; pairs are few.
  run prior "$CONFIG,$start,data=$DATA/$CATEGORY"
  run adapted "$CONFIG,$more,$PAIRS,stage=adapt,init=$OUT/prior_$seed:ema"
  run fused "$CONFIG,seed=$seed,steps=$((STEPS / 2)),$PAIRS,stage=fuse,init=$OUT/adapted_$seed:ema"
  run scratch "$CONFIG,$start,$PAIRS,stage=scratch"
  run prior_other "$CONFIG,$start,data=$DATA/$OTHER"
  run adapted_other "$CONFIG,$more,$PAIRS,stage=adapt,init=$OUT/prior_other_$seed:ema"
  run prior_plain "$CONFIG,$start,plain,data=$DATA/$CATEGORY"
  run adapted_plain "$CONFIG,$more,plain,$PAIRS,stage=adapt,init=$OUT/prior_plain_$seed:ema"
  run network "configs/derain/train.py:net=msrresnet,width=16,depth=3,size=48,batch=8,$PAIRS,\
seeds=$seed,steps=$STEPS" --config.lr=0.002 --config.ema=0.98
done
"$PY" -m launch.prior_table "$OUT" --seeds "$@"
