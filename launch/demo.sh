#!/usr/bin/env bash
# The whole way in one command: environment, sample data, pre-training, evaluation, pictures.
# Needs Python 3.11 to 3.13, no accelerator; about 15 minutes on two cores. Interrupted anywhere, or
# run again, it goes on from what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"

DATA=data/sample
LOWRES=runs/demo_lowres
RUN=runs/demo
OUT=$RUN/pictures

step() { printf '\n== %s\n' "$1"; }

step "1/5 Sample data: real photographs, handwritten digits and printed words ($DATA)"
"$PY" -m input_pipeline.build --from sample --out "$DATA"

step "2/5 A low-resolution SigLIP, which PS3 starts from ($LOWRES)"
"$PY" -m big_vision_ext.train --config "configs/siglip/demo_lowres.py:data=$DATA" \
  --workdir "$LOWRES"

step "3/5 PS3 from it ($RUN)"
"$PY" -m big_vision_ext.train --config "configs/ps3/demo.py:data=$DATA,init=$LOWRES" \
  --workdir "$RUN"

step "4/5 Evaluation on images, glyphs and words that were not trained on"
"$PY" -m big_vision_ext.evaluate --workdir "$LOWRES"
"$PY" -m big_vision_ext.evaluate --workdir "$RUN"

step "5/5 Pictures of what it looks at ($OUT)"
"$PY" -m big_vision_ext.encode --workdir "$RUN" --data "$DATA" --split val --index 0 --index 7 \
  --index 21 --region 0 --out "$OUT"
"$PY" -m big_vision_ext.encode --workdir "$RUN" --data "$DATA" --split val --index 7 --out "$OUT"

step "Done"
"$PY" -m big_vision_ext.evaluate --compare "$LOWRES" --workdir "$RUN"
echo
echo "  model       $RUN            (python -m big_vision_ext.encode --workdir $RUN --image FILE --out DIR)"
echo "  measures    $RUN/evaluation.json, $LOWRES/evaluation.json"
echo "  curves      $RUN/tensorboard (tensorboard --logdir runs)"
echo "  pictures    $OUT"
