r"""CDASR, first stage: super-resolution steered by what a frozen CLIP sees, trained plainly.

  for c in faces natural urban comics; do python -m input_pipeline.build --from backgrounds \
    --category $c --side 384 --out data/backgrounds_384/$c; done
  python -m big_vision_ext.train --workdir runs/cdasr_x4 \
    --config configs/cdasr/train.py:scale=4,tower=B/32,weights=W
  python -m big_vision_ext.evaluate --workdir runs/cdasr_x4

Smoke run on any data set (CPU, a minute): `:runlocal,data=data/sample`. A study of its controls:
`bash launch/cdasr_study.sh`. On a pod: the same command on every host, with `--distributed`.

`W` is a CLIP in any format, data/clip_vit_b32 if none is given; or `tower` is weights itself, a
run of task siglip or clip or an export, whose image tower is taken. `scale`: 2, 3, 4, 8, 16.
`condition`: encoder, or the controls shuffled, constant (as many parameters) and none. `domains`
are folders in `data`, joined by "+", that are trained on; the one of `held_out` is measured and
adapted to with `shots` pictures. Pictures smaller than a crop (`size`, else 192 to 384 pixels by
the scale) are refused: enlarged, they would have no detail to restore. `perceptual` and
`semantics` weigh these terms of the loss; 0 for the highest PSNR.

Expected: no result is claimed: DIV2K and the paper's weights were not at hand. The study says what
the encoder adds on procedural domains.
Source: arXiv 2505.12391 for the alignment and the terms of the loss; the rest is ours (common.py):
Adam 2e-4 (0.9, 0.99), 500,000 steps of 16 crops, moving average 0.999, cosine in place of halving.
"""

from big_vision_ext.core import config as config_lib
from configs.cdasr import common


def get_config(arg=None):
  """`arg`: net, scale, width, depth, tower, weights, condition, spatial, hidden, semantic,
  perceptual, semantics, data, domains, held_out, shots, n, steps, batch, size, eval_size, seed,
  each, lr, runlocal."""
  a = config_lib.parse_arg(
      arg, net="edsr", scale=4, width=0, depth=0, tower="B/32", weights="",
      condition="encoder", spatial="reshape", hidden=1024, semantic=512, perceptual=0.0,
      semantics=0.0, data="data/backgrounds_384", domains="faces+natural+urban", held_out="comics",
      shots="", n=0, steps=500_000, batch=16, size=0, eval_size=0, seed=0, each=False, lr=2e-4,
      runlocal=False)
  c = common.cdasr(a)
  c.batch_size = a.batch
  if c.model.encoder is not None:
    c.init = common.begin(a)
  c.lr = a.lr
  c.schedule = dict(type="cosine", warmup_steps=0, end=5e-4)
  c.ema = 0.999
  if a.runlocal:
    common.runlocal(c, a)
    c.batch_size = 8
    if "init" in c:
      del c.init
  return c
