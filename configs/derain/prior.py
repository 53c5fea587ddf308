"""A content prior for deraining: what the network may draw is made of what clean images are of.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/derain/prior.py:runlocal,data=data/sample --workdir runs/smoke

Three stages, each from the run before, on one machine or a pod (with `--distributed`, the same
command on every host); C stands for all clean pictures, P for those of the study, n of them:
  python -m big_vision_ext.train --workdir runs/prior \
    --config configs/derain/prior.py:data=C
  python -m big_vision_ext.train --workdir runs/adapted \
    --config configs/derain/prior.py:stage=adapt,data=P,n=512,range=medium,init=runs/prior:ema
  python -m big_vision_ext.train --workdir runs/fused \
    --config configs/derain/prior.py:stage=fuse,data=P,n=512,range=medium,init=runs/adapted:ema

With `pairs` P has pairs (`--from pairs`) and nothing is synthesised in training; the first stage
sees their clean pictures alone. What the prior is, is said in every stage: `plain` and `critic` in
all, `layers` in the last two.

The prior is not paired data: it is trained on all clean pictures there are. The output `restore` is
what it restores, `reconstruct` what it loses of clean pictures, the floor; after "fuse" there are
`restore_w0`, `restore_w50` and `restore_w100`.

Ablations: `stage=scratch` (the same network from pairs alone, nothing pre-trained or frozen),
another `data` for the first stage than for the others, and `plain` in all (no codes: an
autoencoder).

Expected: no published result is claimed. launch/prior_study.sh is this on a CPU; its table is in
the README beside this file.

Source: the paper (arXiv 2502.12600) says that a pre-trained generative model restores removal; its
set-up could not be read, and all here is ours, after CodeFormer (Zhou et al. 2022) and its public
recipe: Adam, 7e-5 for 1.6 M steps of 32, average 0.995, hinge critic from step 30,001 (`critic`;
off by default, as is the perceptual term: LPIPS's weights are not at hand, `model.perceptual` takes
a tower of this codebase); 1e-4 for 500 k steps, cross entropy of codes 0.5 (there the rate is
halved twice near the end, here it falls along a cosine to a quarter); 5e-5 for 150 k. It takes
factor 32 and images of 512 px (`size=512`), ours 8 and 128. `layers=9` predicts the codes by its
transformer; by default they are the nearest.
"""

import ml_collections

from big_vision_ext.core import config as config_lib
from configs.derain import common

# Learning rate, steps, and what is left of the rate at the end.
_RECIPES = {"autoencoder": (7e-5, 1_600_000, 6 / 7), "scratch": (7e-5, 1_600_000, 6 / 7),
            "adapt": (1e-4, 500_000, 0.25), "fuse": (5e-5, 150_000, 1.0)}
# What stands still, and is no one's to train.
_FREEZE = {"adapt": ("(codebook|decoder/.*|to_image/.*|teacher/.*)",), "fuse": ("(?!fuse_).*",)}


def get_config(arg=None):
  """`arg`: stage, data=DIR, pairs, n=N (the first N pictures; 0: all), val=N, range, geometry,
  init=WORKDIR, w, size, batch, steps, seed, layers=N (code transformer), plain, critic, tiny (the
  small study), runlocal."""
  a = config_lib.parse_arg(
      arg, stage="autoencoder", data="data/backgrounds/natural", n=0, val=0, range="medium",
      geometry="fixed", init="", w=0.0, size=128, batch=0, steps=0, seed=0, layers=0, plain=False,
      pairs=False, critic=False, tiny=False, runlocal=False)
  if a.stage not in _RECIPES:
    raise config_lib.ConfigError(
        f"config argument stage={a.stage!r}: expected one of {', '.join(_RECIPES)}")
  pretrained = a.stage in _FREEZE
  if pretrained != bool(a.init) and not a.runlocal:
    raise config_lib.ConfigError(
        f"config argument init={a.init!r}: expected the run that stage={a.stage} begins with"
        if pretrained else f"config argument init={a.init!r}: stage={a.stage} begins with nothing")
  lr, steps, end = _RECIPES[a.stage]
  c = ml_collections.ConfigDict()
  c.task = "content_prior"
  c.batch_size = a.batch or 32
  c.total_steps = a.steps or steps
  c.seed = a.seed

  c.input = dict(data=a.data, first=a.n, image_size=a.size, captions=False, crop="plain", flip=True,
                 cache_mb=256, threads=2)
  if a.pairs and a.stage != "autoencoder":
    c.input.pairs = True
  rain = dict(kind="rain", range=tuple(a.range.split("+")), geometry=a.geometry)
  # Attention at 16 x 16 places.
  large = dict(mults=(1, 2, 2, 4, 4, 8), attention=(5,)) if a.size >= 512 else {}
  c.model = dict(stage=a.stage, image=dict(image_size=a.size, quantize=not a.plain, **large))
  if a.stage == "autoencoder":
    a.pairs = False
  elif not a.pairs:
    c.model.degrade = rain
  if not pretrained and not a.plain:
    c.model.revive = dict(steps=100)
  if a.critic and not pretrained:
    c.model.critic = dict(start=30_001)
  if pretrained and a.layers:
    c.model.image.update(code_layers=a.layers, code_heads=8, code_dim=512)
  if a.stage == "fuse":
    c.model.image.fuse_levels = (1, 2, 3, 4) if large else (1, 2)
    c.model.w = a.w

  c.lr = lr
  c.schedule = dict(type="cosine", warmup_percent=0.1, end=end)
  c.optim = dict(name="adam", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=None)
  own = [*([] if a.plain else ["usage", "spare"]), *(["updates"] if a.critic else [])]
  c.optim.freeze = _FREEZE.get(a.stage, tuple(own))
  c.ema = 0.995
  if a.init:
    missing = {"adapt": ["teacher/.*"], "fuse": ["fuse_.*"]}[a.stage]
    missing += ["code_transformer/.*"] * bool(a.stage == "adapt" and a.layers)
    # What only the first stage needs: of its codes' training, a critic, a perceptual term.
    extra = ("(usage|spare|updates|critic/.*|eye/.*)",) if a.critic or not a.plain else ()
    c.init = dict(path=a.init, allow_missing=tuple(missing),
                  allow_extra=extra if a.stage == "adapt" else ())
  c.mesh = dict(data=-1, fsdp=1, tensor=1)

  c.log_steps = 50
  c.ckpt_steps = 5_000
  # Of the first stage the floor alone: it has not seen any rain.
  rains = {} if a.stage == "autoencoder" else common.rains(a, rain)
  c.evals = dict(rain=dict(
      type="content_prior", input=dict(split="val", first=a.val, eval_plain=True), rains=rains,
      batch_size=32, eval_percent=25))
  if a.tiny:
    _tiny(c, a)
  if a.runlocal:
    c.batch_size = a.batch or 8
    c.total_steps = a.steps or 3
    c.input.update(image_size=32, first=0, cache_mb=0)
    c.evals = {}
    c.model.image.update(image_size=32, width=8, mults=(1, 2, 2), depth=1, groups=4, attention=(2,),
                         codes=32, code_width=8)
    if "code_layers" in c.model.image:
      c.model.image.update(code_layers=1, code_heads=2, code_dim=16)
    if a.stage == "fuse":
      c.model.image.fuse_levels = (1,)
    c.log_steps = 1
  return c


def _tiny(c, a):
  """48 px by a factor of 4, with a skip at all sizes above the codes': some minutes on a CPU."""
  c.batch_size = a.batch or 8
  c.total_steps = a.steps or 200
  c.input.image_size = 48
  c.model.image.update(image_size=48, width=8, mults=(1, 2, 4), depth=1, groups=4, attention=(),
                       codes=128, code_width=16)
  if "revive" in c.model:
    c.model.revive.steps = 20
  if a.stage == "fuse":
    c.model.image.fuse_levels = (0, 1)
  c.lr = 2e-3
  c.schedule = dict(type="cosine", warmup_steps=min(10, c.total_steps // 2), end=0.05)
  c.ema = 0.98
  c.evals.rain.eval_percent = None
