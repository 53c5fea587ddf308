#!/usr/bin/env bash
# Why does deraining fail to generalise? Small networks from several seeds, trained as one population
# on few and on many backgrounds of two kinds, under rain of a narrow and of a wide range, with the
# picture added to what they give and without, and measured on that rain, on another renderer's and on
# directions left out. Some twenty minutes on a slow core; interrupted anywhere, or run again, it goes
# on from what is there.
#
# STEPS, SEEDS, SKIPS, CATEGORIES, RANGES, N, SIZE, WIDTH, VAL and OUT change its size: STEPS=4
# SEEDS=0-1 CATEGORIES=faces N=2+4 VAL=2 is a smoke run, SKIPS=True half of the study.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"

OUT=${OUT:-runs/derain_study}
SIZE=${SIZE:-32}
DATA=${DATA:-data/backgrounds_$SIZE}
arg=tiny,data=$DATA,size=$SIZE,seeds=${SEEDS:-0-2},steps=${STEPS:-250},width=${WIDTH:-8}
arg=$arg,skips=${SKIPS:-True+False},categories=${CATEGORIES:-faces+urban},ranges=${RANGES:-small+large},n=${N:-4+16+128},val=${VAL:-24}

"$PY" -m big_vision_ext.grid --config "configs/derain/grid.py:$arg" --out "$OUT" --drop-checkpoints
