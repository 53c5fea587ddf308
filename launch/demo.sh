#!/usr/bin/env bash
# The whole way in one command: environment, sample data, pre-training, evaluation, pictures.
# Needs Python 3.11 to 3.13, no accelerator; 6 to 20 minutes on two cores. Interrupted anywhere, or
# run again, it goes on from what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"

DATA=data/sample
LOWRES=runs/demo_lowres
RUN=runs/demo
PICTURES=$RUN/pictures

step() { printf '\n== %s\n' "$1"; }

step "1/4 Sample data: photographs with handwritten digits and printed words ($DATA)"
"$PY" -m input_pipeline.build --from sample --out "$DATA"

step "2/4 The baseline: a SigLIP that sees 96 px ($LOWRES)"
"$PY" -m big_vision_ext.train --config "configs/siglip/demo_lowres.py:data=$DATA" \
  --workdir "$LOWRES"

step "3/4 PS3: 96 px, then selected patches of 384 and 768 px, 200 a look ($RUN)"
"$PY" -m big_vision_ext.train --config "configs/ps3/demo.py:data=$DATA" --workdir "$RUN"

# Training ends with an evaluation on canvases, digits and words that were not trained on, unless it
# was interrupted just there.
for workdir in "$LOWRES" "$RUN"; do
  [ -f "$workdir/evaluation.json" ] || "$PY" -m big_vision_ext.evaluate --workdir "$workdir"
done

step "4/4 Pictures of what it looks at ($PICTURES)"
"$PY" -m big_vision_ext.encode --workdir "$RUN" --data "$DATA" --split val \
  --index 0 --index 7 --index 21 --region 0 --looks 4 --out "$PICTURES"
"$PY" -m big_vision_ext.encode --workdir "$RUN" --data "$DATA" --split val --index 7 --looks 4 \
  --out "$PICTURES"

step "Done"
"$PY" -m big_vision_ext.evaluate --workdir "$RUN" --compare "$LOWRES"
cat <<TXT

  the model    $RUN   (python -m big_vision_ext.encode --workdir $RUN --image FILE --out DIR)
  measures     $RUN/evaluation.json, $LOWRES/evaluation.json
  curves       $RUN/metrics.jsonl, $RUN/tensorboard
  pictures     $PICTURES
Commands run by hand want the environment: source .venv/bin/activate
TXT
