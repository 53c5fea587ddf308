r"""The grid of the deraining study: networks x skips x categories x ranges x n backgrounds.

  python -m big_vision_ext.grid --config configs/derain/grid.py --out runs/derain_grid

Each cell is a run of `train.py` with five seeds. The data sets `DATA/CATEGORY` are built if they
are not there. `:tiny` is the small study on a CPU, see `launch/derain_study.sh`. The axes are those
of arXiv 2502.12600 as recalled, but for the skip (ours): with the picture added to what the network
gives, doing nothing is the zero function, and so is what a shortcut has to learn. Drawn categories
stand for the paper's data sets, and n goes as far as those are worth drawing (ours).
"""

import ml_collections

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """`arg`: data=DIR, seeds=0-4, steps=N, nets, skips, categories, ranges, n (each as
  a+b+c), size, width, depth, batch, val, tiny."""
  defaults = dict(
      data="data/backgrounds", seeds="0-4", steps=120_000, nets="msrresnet+swinir_light+unet",
      skips="True+False", categories="faces+natural+comics+urban", ranges="small+medium+large",
      n="8+16+32+64+128+256+512+1024", size=128, width=0, depth=0, batch=16, val=0, tiny=False)
  if "tiny" in (arg or "").split(","):
    defaults.update(
        nets="msrresnet", categories="faces+urban", ranges="small+large", n="4+16+128", steps=250,
        size=32, width=8, depth=2, batch=8, seeds="0-2", val=24)
  a = config_lib.parse_arg(arg, **defaults)
  g = ml_collections.ConfigDict()
  g.config = "configs/derain/train.py"
  g.data = a.data
  skips = tuple(map(config_lib.parse_value, a.skips.split("+")))
  if not {*skips} <= {True, False}:
    raise config_lib.ConfigError(
        f"config argument skips={a.skips}: expected True, False or True+False")
  g.axes = (("net", tuple(a.nets.split("+"))), ("skip", skips),
            ("backgrounds", tuple(a.categories.split("+"))),
            ("range", tuple(a.ranges.split("+"))), ("n", tuple(map(int, a.n.split("+")))))
  g.fixed = dict(seeds=a.seeds, steps=a.steps, size=a.size, batch=a.batch, width=a.width,
                 depth=a.depth, val=a.val)
  # A smaller network and a short run learn at a higher rate; it is measured once.
  g.overrides = ("lr=0.005", "ema=0.98", "log_steps=100",
                 "evals.rain.eval_percent=100") if a.tiny else ()
  return g
