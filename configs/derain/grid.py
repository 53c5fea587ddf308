r"""The grid of the deraining study: networks x categories x ranges x numbers of backgrounds.

  python -m big_vision_ext.grid --config configs/derain/grid.py --out runs/derain_grid

Each cell is a run of `train.py` with five seeds. The data sets `DATA/CATEGORY` are built if they
are not there. `:tiny` is the small study on a CPU, see `launch/derain_study.sh`. The axes are those
of arXiv 2502.12600 as recalled; drawn categories stand for its data sets, and n goes as far as
those are worth drawing (ours).
"""

import ml_collections

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """`arg`: data=DIR, seeds=0-4, steps=N, nets, categories, ranges, n (each as a+b+c), tiny."""
  defaults = dict(
      data="data/backgrounds", seeds="0-4", steps=120_000, nets="msrresnet+swinir_light+unet",
      categories="faces+natural+comics+urban", ranges="small+medium+large",
      n="8+16+32+64+128+256+512+1024", size=128, width=0, depth=0, batch=16, val=0, tiny=False)
  if "tiny" in (arg or "").split(","):
    defaults.update(
        nets="msrresnet", categories="faces+urban", ranges="small+large", n="4+16+128", steps=250,
        size=32, width=8, depth=2, batch=8, seeds="0-2", val=24)
  a = config_lib.parse_arg(arg, **defaults)
  g = ml_collections.ConfigDict()
  g.config = "configs/derain/train.py"
  g.data = a.data
  g.axes = (("net", tuple(a.nets.split("+"))), ("backgrounds", tuple(a.categories.split("+"))),
            ("range", tuple(a.ranges.split("+"))), ("n", tuple(map(int, a.n.split("+")))))
  g.fixed = dict(seeds=a.seeds, steps=a.steps, size=a.size, batch=a.batch, width=a.width,
                 depth=a.depth, val=a.val)
  # A smaller network and a short run learn at a higher rate; it is measured once.
  g.overrides = ("lr=0.005", "ema=0.98", "log_steps=100",
                 "evals.rain.eval_percent=100") if a.tiny else ()
  return g
