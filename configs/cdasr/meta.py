r"""CDASR, second stage: learning to adapt to a domain from a few pictures, from a first stage.

  python -m big_vision_ext.train --workdir runs/cdasr_x4_meta \
    --config configs/cdasr/meta.py:scale=4,tower=B/32,base=runs/cdasr_x4:ema
  python -m big_vision_ext.adapt --weights runs/cdasr_x4_meta --pairs photos/ --steps 10 --out W2

Smoke run on any data set (CPU, a minute): `:runlocal,data=data/sample`. On a pod: the same command
on every host, with `--distributed`; `tasks` is a multiple of the devices then.

A batch is `tasks` tasks, each of one domain of `domains`, of `support` and `query` crops; the loss
is that of the queries along `inner` steps of plain SGD on the support. `order=2` differentiates
these steps. `adapted`: adapter (the alignment and the last convolution) or all; `rate`: of the
steps, by default 1e-2, or 1e-4 for all. `inner=0` trains on without any, on the same batches: what
learning to adapt is compared with. The other arguments are those of train.py, and the same as
there.

Expected: no result is claimed; `bash launch/cdasr_study.sh` compares with plain training.
Source: the paper (arXiv 2505.12391) says that adaptation to a domain is learned from few pictures;
numbers are MZSR's (CVPR 2020: alpha 1e-2, 5 steps, Adam 1e-4, 100,000 steps, weights of queries)
and ours: first order, 4 tasks of 4 + 4, a tenth of the rate for the trunk.
"""

from big_vision_ext.core import config as config_lib
from configs.cdasr import common

# Of the steps inside [P]: all of a network moves further than its last layers.
_RATES = {"adapter": 1e-2, "all": 1e-4}


def get_config(arg=None):
  """`arg`: base, tasks, support, query, inner, rate, order, adapted, anneal; and net, scale, width,
  depth, tower, condition, spatial, hidden, semantic, perceptual, semantics, data, domains,
  held_out, shots, n, steps, size, eval_size, seed, each, lr, runlocal."""
  a = config_lib.parse_arg(
      arg, base="runs/cdasr_x4:ema", tasks=4, support=4, query=4, inner=5, rate=None, order=1,
      adapted="adapter", anneal=3333, net="edsr", scale=4, width=0, depth=0, tower="B/32",
      weights="", condition="encoder", spatial="reshape", hidden=1024, semantic=512,
      perceptual=0.0, semantics=0.0, data="data/backgrounds_384", domains="faces+natural+urban",
      held_out="comics", shots="1+5+10", n=0, steps=100_000, size=0, eval_size=0, seed=0,
      each=False, lr=1e-4, runlocal=False)
  if a.adapted not in _RATES:
    raise config_lib.ConfigError(
        f"config argument adapted={a.adapted}: expected {' or '.join(_RATES)}")
  rate = _RATES[a.adapted] if a.rate is None else a.rate
  c = common.cdasr(a)
  c.batch_size = a.tasks * (a.support + a.query)
  c.input.group = a.support + a.query
  c.init = dict(path=a.base)
  if a.inner:
    c.model.meta = dict(
        inner_steps=a.inner, inner_rate=rate, tasks=a.tasks, support=a.support, query=a.query,
        order=a.order, adapted=a.adapted, anneal_steps=a.anneal)
    c.init.allow_missing = ("meta_step",)
    # Outer steps are counted in it.
    c.optim.freeze = (*c.optim.freeze, "meta_step")
  c.lr = a.lr
  c.schedule = dict(type="constant")
  c.optim.lr_mults = (("net/(?!last/).*", 0.1),)
  if "held_out" in c.evals:
    c.evals.held_out.update(rate=rate, adapted=a.adapted)
  if a.runlocal:
    common.runlocal(c, a)
    del c.init
    # For up to eight devices.
    if a.inner:
      c.model.meta.update(tasks=8, support=1, query=1, inner_steps=2)
    c.batch_size, c.input.group = 16, 2
  return c
