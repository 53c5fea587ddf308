"""What the configs of deraining share: recipe, rain, and what is measured.

The recipe is ours, after a co-author's development code (Adam 2e-4 with betas 0.9 and 0.99, L1,
128 px crops, batches of 16, moving average 0.999 for evaluation, 120,000 steps); ours are the
cosine in place of its steps, and quarter turns. How long the paper trains is not confirmed.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# Steep directions, and the ranges that have none of them.
HELD_OUT = ((45.0, 70.0), (-70.0, -45.0))
_WITHOUT = {"small", "medium", "paper_small", "paper_medium", "dev_small", "dev_medium", "mioir",
            "agenticir"}


def derain(a) -> ml_collections.ConfigDict:
  """A population of seeds on n clean crops under rain of a range.

  Args:
    a: parsed argument with `net`, `skip`, `width`, `depth`, `backgrounds`, `n`, `range`,
      `geometry`, `probability`, `seeds`, `steps`, `batch`, `size`, `val`, `data`, `pairs`.
  """
  c = ml_collections.ConfigDict()
  c.task = "restore"
  c.batch_size = a.batch
  c.total_steps = a.steps
  c.seed = 0

  # Crops are stored at their size: nothing is drawn here. Flips and turns are each member's own.
  c.input = dict(
      data=a.data or f"data/backgrounds/{a.backgrounds}", first=a.n, image_size=a.size,
      crop="plain", captions=False, pairs=a.pairs, cache_mb=256, threads=2)
  fields = {k: a[k] for k in ("width", "depth") if a[k]}
  if a.skip is not None:
    fields["global_skip"] = a.skip
  rain = dict(kind="rain", range=tuple(a.range.split("+")), geometry=a.geometry)
  c.model = dict(
      net=dict(name=a.net, scale=1, fields=fields), image_size=a.size,
      degrade=None if a.pairs else dict(rain, probability=a.probability),
      loss="l1", seeds=seeds(a.seeds), augment=True, quantize_input=True)

  c.lr = 2e-4
  # Down to a rate of 1e-7.
  c.schedule = dict(type="cosine", warmup_steps=0, end=5e-4)
  c.optim = dict(name="adam", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=None)
  c.ema = 0.999
  c.mesh = dict(data=-1, fsdp=1, tensor=1)

  c.log_steps = 100
  c.ckpt_steps = 5_000
  c.evals = dict(rain=dict(
      type="restoration", input=dict(split="val", first=0, eval_plain=True), rains=rains(a, rain),
      batch_size=32, eval_percent=25))
  if a.val:
    c.evals.rain.input["first"] = a.val
  return c


def rains(a, rain: dict) -> dict:
  """What is measured on: the range of `a`, another renderer's rain, and directions left out.

  It is rain whatever `model.degrade` is set to on a command line.
  """
  if a.pairs:
    return dict(seen=dict(kind="pairs"), unseen=dict(kind="segments"))
  out = dict(seen=rain, unseen=dict(kind="segments"))
  if _WITHOUT.issuperset(a.range.split("+")):
    out["directions"] = dict(
        kind="rain", geometry=a.geometry,
        range=dict(amount=(0.0078125, 0.01171875), width=(5,), length=(30, 31), angle=HELD_OUT))
  return out


def seeds(text: str) -> tuple[int, ...]:
  """Seeds as an argument writes them: "0-4" for 0, 1, 2, 3 and 4, or "0+3+7"."""
  try:
    if "-" in text:
      first, last = map(int, text.split("-"))
      return tuple(range(first, last + 1))
    return tuple(map(int, text.split("+")))
  except ValueError as error:
    raise config_lib.ConfigError(
        f"config argument seeds={text}: expected as 0-4 or 0+3+7") from error


def runlocal(c: ml_collections.ConfigDict, a) -> None:
  """Shrinks a config to three steps on a CPU: two seeds, 32 px, 8 channels."""
  c.batch_size = 8
  c.total_steps = 3
  fields = {"width": 8, "depth": 1}
  fields |= {"swinir_light": {"width": 12}, "swinir": {"width": 12}, "restormer": {}}.get(a.net, {})
  c.model.net["fields"].update(fields)
  c.model.update(image_size=32, seeds=(0, 1))
  # Any data set will do, however large.
  c.input.update(image_size=32, first=0, threads=2, cache_mb=0)
  c.log_steps = 1
  c.evals = {}
