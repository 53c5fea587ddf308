r"""Deraining: a population of seeds on n clean crops, under synthetic rain of a range.

  python -m input_pipeline.build --from backgrounds --category natural \
    --out data/backgrounds/natural
  python -m big_vision_ext.train --workdir runs/derain_natural_256_small \
    --config configs/derain/train.py:net=msrresnet,backgrounds=natural,n=256,range=small,seeds=0-4
  python -m big_vision_ext.evaluate --workdir runs/derain_natural_256_small

Smoke run on any data set (CPU, a minute): `:runlocal,data=data/sample`. A study of a few minutes on
a CPU: `bash launch/derain_study.sh`; grids: `grid.py`.

On a pod (the same command on every host): as above with `--distributed`; `seeds=0-3` and
`--config.mesh.tensor=4` put the four members on devices of their own. `mesh.tensor` must divide
the devices, as 5 does not those of a pod, and members that it does not divide stay together.

`net`: msrresnet, swinir_light, swinir, unet, restormer, edsr, smaller ones by `width` and `depth`;
`skip=True|False`: with the picture added to what the network gives, or not (default: the network's
own way); `range`: small, medium, large (the paper's, as recalled), dev_* or several, as
small+large; `size`: that of the stored crops, for of larger ones parts are drawn, which are no n
fixed crops; `geometry`: fixed or legacy; `probability`: of rain, 0.9 in a co-author's code;
`pairs`: the data set has pairs (`--from pairs`) and nothing is synthesised in training.

Expected: no result is claimed at this size; configs/derain/README.md has what a small study found.
Source: arXiv 2502.12600 and 2305.15134 for the question; the network's form is a co-author's
code's; the ranges are recalled; `common.py` for the recipe.
"""

from big_vision_ext.core import config as config_lib
from configs.derain import common


def get_config(arg=None):
  """`arg`: net, skip, width, depth, backgrounds, n, range, geometry, probability, seeds, steps,
  batch, size, val, data, pairs, runlocal."""
  a = config_lib.parse_arg(
      arg, net="msrresnet", skip=None, width=0, depth=0, backgrounds="natural", n=256,
      range="medium", geometry="fixed", probability=1.0, seeds="0", steps=120_000, batch=16,
      size=128, val=0, data="", pairs=False, runlocal=False)
  c = common.derain(a)
  if a.runlocal:
    common.runlocal(c, a)
  return c
