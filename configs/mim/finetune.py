"""Fine-tunes a masked autoencoder's ViT-B/16, L/16 or H/14 for classification.

Smoke run (CPU, a minute; `data` is a folder of records with class labels, see below):
  python -m big_vision_ext.train \
    --config configs/mim/finetune.py:runlocal,classes=10,data=data/classes --workdir runs/smoke

On a pod (the same command on every host):
  I=/checkpoints/mae_b; D=/data/imagenet
  python -m big_vision_ext.train --distributed --workdir /checkpoints/mae_b_finetuned \
    --config configs/mim/finetune.py:size=b,data=$D,names=$D/classes.txt,init=$I

`init` is a run of ours or weights in any format of `convert`; without it training starts from
nothing. `data` has the splits "train" and "val", made from folders of images named after their
classes by `python -m input_pipeline.build --from folder --images DIR --split train --out DATA` and
the same for val. `names`, a file with the name of one class on each line, saves reading the labels
of all training images at the start; without it classes are numbered in the order of their names.

Expected, from 1,600 epochs of pretraining on ImageNet with normalised pixels: top-1 of 83.6 (B),
85.9 (L) and 86.9 (H) on ImageNet's val; H at 448 px, `size=h,res=448`, 87.8. Published, not run
here.

Source: He et al. 2022, sec. A.1, and the recipes of facebookresearch/mae: AdamW, batch 1,024, base
rate per 256 images, layer-wise decay, RandAugment, erasing, mixup, cutmix, label smoothing. There
mixup and cutmix are drawn once for a device's batch, here for each image.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# epochs, learning rate for 256 images, layer decay, drop path.
_RECIPES = {
  "b": ("B/16", 100, 5e-4, 0.65, 0.1),
  "l": ("L/16", 50, 1e-3, 0.75, 0.2),
  "h": ("H/14", 50, 1e-3, 0.75, 0.3),
}
# What a pretraining run has beside the encoder; other blocks than ours are an error.
_NOT_NEEDED = "(?!Transformer/encoderblock).*"


def get_config(arg=None):
  """`arg`: size=b|l|h, data=DIR, init=PATH, res=PIXELS, classes=N, names=FILE, batch=N, runlocal"""
  a = config_lib.parse_arg(arg, size="b", data="data/imagenet", init="", res=224, classes=1000,
                           names="train", batch=1024, runlocal=False)
  if a.size not in _RECIPES:
    raise config_lib.ConfigError(f"config argument size={a.size!r}: expected one of b, l, h")
  variant, epochs, base_rate, layer_decay, drop_path = _RECIPES[a.size]
  c = ml_collections.ConfigDict()
  c.task = "classify"
  c.batch_size = a.batch
  c.total_epochs = epochs
  c.seed = 0

  c.input = dict(
      data=a.data, image_size=a.res, captions=False, num_classes=a.classes, classes=a.names,
      crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=True,
      augment="rand-m9-mstd0.5-inc1-bicubic", eval_crop=0.875, threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant=variant, image_size=a.res, drop_path=drop_path, scan=True,
                 remat_policy="nothing_saveable", dtype="bfloat16"),
      num_classes=a.classes, feature="mean", label_smoothing=0.1, mixup=0.8, cutmix=1.0,
      erasing=0.25)

  c.lr = base_rate * a.batch / 256
  # Down to a rate of 1e-6, and that of each layer as far in proportion.
  c.schedule = dict(type="cosine", warmup_epochs=5, end=1e-6 / c.lr)
  # A decay of 0.05 that is multiplied by the learning rate there and not here.
  c.optim = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05 * c.lr, layer_decay=layer_decay,
                 clip_norm=None)
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=128)
  if a.init:
    c.init = dict(path=a.init, allow_missing=("fc_norm/.*", "head/.*", "cls_pos_embedding"),
                  allow_extra=(_NOT_NEEDED,), resize_posemb=True)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.evals = dict(val=dict(type="classification", input=dict(split="val"), batch_size=1024,
                          eval_epochs=5))

  if a.runlocal:
    c.batch_size = 8
    del c.total_epochs
    c.total_steps = 3
    c.schedule = dict(type="cosine", warmup_steps=1, end=1e-6 / c.lr)
    c.input.update(image_size=32, threads=2)
    c.model.image = dict(variant="mu/16", image_size=32, depth=2, drop_path=drop_path)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    c.evals.val.update(batch_size=8, eval_epochs=None)
  return c
