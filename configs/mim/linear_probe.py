"""Linear probe of a masked autoencoder's ViT-B/16, L/16 or H/14: the head is trained, nothing else.

Smoke run (CPU, a minute; `data` is a folder of records with class labels, see finetune.py):
  python -m big_vision_ext.train \
    --config configs/mim/linear_probe.py:runlocal,classes=10,data=data/classes --workdir runs/smoke

On a pod (the same command on every host):
  I=/checkpoints/mae_b; D=/data/imagenet
  python -m big_vision_ext.train --distributed --workdir /checkpoints/mae_b_probe \
    --config configs/mim/linear_probe.py:size=b,data=$D,names=$D/classes.txt,init=$I

`init`, `data` and `names` are those of finetune.py. Without `init` the encoder is random, which
measures the architecture. `opt=sgd` is SGD with momentum at batch 4,096.

Expected, from 1,600 epochs of pretraining on ImageNet with normalised pixels: top-1 of 68.0 (B),
75.8 (L) and 76.6 (H) on ImageNet's val (67.8, 76.0, 77.2 by facebookresearch/mae). Published, not
run here. Features of a few images are probed faster by the evaluator `linear_probe`.

Source: He et al. 2022, sec. A.1, and facebookresearch/mae: class token, BatchNorm without scale and
shift, LARS, batch 16,384, base rate 0.1 per 256 images, no decay, 90 epochs, crops drawn once and
clamped. BatchNorm's statistics there are those of a device's batch, here of the global one. That
SGD does as well at batch 4,096 is said there, its rate is not: the same for an image is our choice.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

_VARIANTS = {"b": "B/16", "l": "L/16", "h": "H/14"}
_BATCHES = {"lars": 16_384, "sgd": 4_096}
# What a pretraining run has beside the encoder; other blocks than ours are an error.
_NOT_NEEDED = "(?!Transformer/encoderblock).*"


def get_config(arg=None):
  """`arg`: size=b|l|h, opt=lars|sgd, data, init, res, classes, names, batch, epochs, runlocal."""
  a = config_lib.parse_arg(arg, size="b", opt="lars", data="data/imagenet", init="", res=224,
                           classes=1000, names="train", batch=0, epochs=90, runlocal=False)
  for name, known in (("size", _VARIANTS), ("opt", _BATCHES)):
    if a[name] not in known:
      raise config_lib.ConfigError(
        f"config argument {name}={a[name]!r}: expected one of {', '.join(known)}")
  c = ml_collections.ConfigDict()
  c.task = "classify"
  c.batch_size = a.batch or _BATCHES[a.opt]
  c.total_epochs = a.epochs
  c.seed = 0

  c.input = dict(
      data=a.data, image_size=a.res, captions=False, num_classes=a.classes, classes=a.names,
      crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), crop_clamp=True, flip=True,
      eval_crop=0.875, threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant=_VARIANTS[a.size], image_size=a.res, scan=True, dtype="bfloat16"),
      num_classes=a.classes, feature="cls", probe=True)

  c.lr = 0.1 * c.batch_size / 256
  c.schedule = dict(type="cosine", warmup_epochs=10)
  c.optim = dict(name=a.opt, b1=0.9, weight_decay=0.0, clip_norm=None, freeze=("(?!head/).*",))
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=128)
  if a.init:
    c.init = dict(
        path=a.init, allow_missing=("head/.*", "head_norm/.*", "cls_pos_embedding"),
        allow_extra=(_NOT_NEEDED,), resize_posemb=True)

  c.log_steps = 20
  c.ckpt_steps = 500
  c.evals = dict(val=dict(type="classification", input=dict(split="val"), batch_size=1024,
                          eval_epochs=5))

  if a.runlocal:
    c.batch_size = a.batch or 8
    del c.total_epochs
    c.total_steps = 3
    c.lr = 0.1 * c.batch_size / 256
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.input.update(image_size=32, threads=2)
    c.model.image = dict(variant="mu/16", image_size=32)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    c.evals.val.update(batch_size=8, eval_epochs=None)
  return c
