"""UniQA's adapter for CLIP features: quality or aesthetics of pictures, from all labels or a few.

Smoke run (CPU, a minute; `data` is a folder of rated records, see input_pipeline/build/README.md):
  python -m big_vision_ext.train \
    --config configs/uniqa/adapter.py:runlocal,data=data/rated --workdir runs/smoke

Features once, then runs of minutes, whatever their split, labels and seed:
  python -m big_vision_ext.cache_features --weights W --data data/koniq --out features/koniq
  python -m big_vision_ext.train --workdir runs/koniq_1 \
    --config configs/uniqa/adapter.py:dataset=koniq,data=data/koniq,features=features/koniq,split=1

On images, without features (the same command on every host of a pod, of at most `batch` devices):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/koniq_1 --config \
    configs/uniqa/adapter.py:dataset=koniq,data=/data/koniq,weights=W,tokenizer=clip:VOCABULARY

`split=1` to 10 are ten draws of 80/20 % by reference (`by=reference`, no content on both sides), by
image as in the paper (`by=image`), or those that came with the data (`by=pkl`, `by=official`).
`labels=50` trains on so many pictures, drawn by `seed` and split. `holdout` keeps a tenth of the
training pictures to select by (evaluation `val`). The last checkpoint is what counts.

Expected: no published result is claimed; the weights and data sets were not at hand.

Source: arXiv 2406.01069 and zht8506/UniQA: Adam at 2e-4, cosine to zero stepped once an epoch,
batch 8, mean squared error, crops of 224 px at the pictures' own resolution, mirrored; 20 epochs
(KonIQ) and 50 (CLIVE). For the other data sets it is not known: 20 where there are more than 5,000
pictures, else 50; 50 for few labels.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# Epochs; what the scores are of.
_DATASETS = {
    "koniq": (20, "quality"), "clive": (50, "quality"),
    "kadid": (20, "quality"), "spaq": (20, "quality"), "flive": (20, "quality"),
    "tid2013": (50, "quality"), "csiq": (50, "quality"), "live": (50, "quality"),
    "agiqa3k": (50, "quality"), "ava": (20, "aesthetic"), "aadb": (20, "aesthetic"),
    "other": (50, "quality")}
_FEW_EPOCHS = 50
_SPLITS = ("reference", "image", "pkl", "official")


def get_config(arg=None):
  """`arg`: dataset, data=DIR, features=DIR or weights=W with tokenizer=SPEC, split, by, labels,
  prompts, seed, epochs, batch, holdout, frozen_levels, zero_init, runlocal."""
  a = config_lib.parse_arg(
      arg, dataset="koniq", data="data/rated", features="", weights="data/UniQA_weight.pt",
      tokenizer="clip:data/clip_vit_b16", split=1, by="reference", labels=0,
      prompts="uniqa", seed=0, epochs=0, batch=8, holdout=False, frozen_levels=False,
      zero_init=False, runlocal=False)
  for name, known in (("dataset", _DATASETS), ("by", _SPLITS)):
    if a[name] not in known:
      raise config_lib.ConfigError(
          f"config argument {name}={a[name]!r}: expected one of {', '.join(known)}")
  epochs, measures = _DATASETS[a.dataset]
  c = ml_collections.ConfigDict()
  c.task = "quality"
  c.batch_size = a.batch
  c.total_epochs = a.epochs or (_FEW_EPOCHS if a.labels else epochs)
  c.seed = a.seed

  split = a.by if a.by == "official" else f"{a.by}_{a.split}"
  part = f"{split}/{'fit' if a.holdout else 'train'}"
  if a.labels:
    part += f"/{a.labels}@{a.seed}"
  c.input = dict(
      data=a.data, split="all", part=part, image_size=224, captions=False, crop="plain", flip=True,
      scores=True, threads=8, prefetch=4)
  c.model = dict(measures=measures, zero_init_last=a.zero_init)

  c.lr = 2e-4
  c.schedule = dict(type="cosine", every_epochs=1)
  c.optim = dict(name="adam", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=None)
  # All but the adapter stands still: towers, texts of the prompts, temperature.
  c.optim.freeze = ("(?!adapter/fc_).*",) if a.frozen_levels else ("(?!adapter/).*",)
  c.mesh = dict(data=-1, fsdp=1, tensor=1)

  c.log_steps = 50
  c.ckpt_percent = 25
  test = dict(part=f"{split}/test")
  c.evals = dict(test=dict(type="quality", input=test, batch_size=320, eval_percent=10))
  if a.holdout:
    c.evals.val = dict(type="quality", input=dict(part=f"{split}/val"), batch_size=320,
                       eval_percent=10)
  if a.features:
    _on_features(c, a, test)
  else:
    c.model.update(clip=dict(variant="B/16"), tokenizer=a.tokenizer, prompts=a.prompts)
    c.init = dict(path=a.weights, allow_missing=("adapter/.*", "texts"))
    # On images an evaluation costs as much as an epoch of training.
    c.evals.test.eval_percent = 50

  if a.runlocal:
    del c.total_epochs
    c.total_steps = 3
    c.schedule = dict(type="cosine")
    c.input.threads = 2
    c.log_steps = 1
    c.evals.test.update(batch_size=40, bootstrap=20, eval_percent=None)
    if not a.features:
      c.input.update(image_size=32)
      del c.init
      c.model.tokenizer = "bytes"
      # Bytes, of which 1 ends a text.
      c.model.clip = dict(image=dict(variant="mu/16", image_size=32, num_classes=16),
                          text=dict(variant="mu", vocab_size=259, eot_id=1))
  return c


def _on_features(c, a, test):
  """Reads what the features are of, and trains on them; baselines cost next to nothing then."""
  # Here, since nothing else in a config reads files.
  from input_pipeline import crop_features

  try:
    found = crop_features.read_manifest(a.features)
  except ValueError as error:
    raise config_lib.ConfigError(f"config argument features={a.features}: {error}") from error
  has, prompts = found["settings"], found["prompts"]
  if a.prompts not in prompts:
    raise config_lib.ConfigError(
        f"config argument prompts={a.prompts!r}: {a.features} has {', '.join(prompts)}; add a file "
        "of others with --prompts FILE of cache_features")
  c.input.update(features=a.features, image_size=has["image_size"], flip=has["flip"],
                 eval_crops=has["eval_crops"], threads=2)
  c.model.update(
      prompts=prompts[a.prompts], width=has["width"],
      towers=dict(path=has["weights"], fingerprint=has["fingerprint"]))
  c.init = dict(path=f"{a.features}/prompts/{a.prompts}.npz", allow_missing=("adapter/.*",))
  c.evals.zero_shot = dict(type="quality", output="quality_zero_shot", input=test, batch_size=320)
  c.evals.linear = dict(type="quality_probe", train_part=c.input.part, input=test, batch_size=320)
