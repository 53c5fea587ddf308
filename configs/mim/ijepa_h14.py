"""I-JEPA: ViT-H/14 pretrained by predicting a teacher's features of hidden blocks.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/ijepa_h14.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/ijepa_h14 \
    --config configs/mim/ijepa_h14.py:data=/data/imagenet

Expected: a linear probe on averaged features of 79.3 % on ImageNet (Assran et al. 2023, table 1,
300 epochs). Published, not run here.

Source: Assran et al. 2023 and the recipe in1k_vith14_ep300 of facebookresearch/ijepa: AdamW, batch
2,048, rate 1e-3 after 40 epochs of warm-up, crops of 30 to 100 %, no flip, teacher 0.996 to 1 over
the run, four target blocks. What differs: the sizes of blocks are constants, 45 tokens (15 to 20 %
of 256 there) and a context of 64 (what its shortest list leaves, there); the warm-up begins at 0
(there at a fifth); initial kernels are MAE's.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# 300 epochs of ImageNet's 1,281,167 images in batches of 2,048.
_STEPS = 187_671


def get_config(arg=None):
  """`arg`: data=DIR, batch=N, steps=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/imagenet", batch=2048, steps=_STEPS, runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "ijepa"
  c.batch_size = a.batch
  c.total_steps = a.steps
  c.seed = 0

  c.input = dict(data=a.data, image_size=224, captions=False, crop_scale=(0.3, 1.0),
                 crop_ratio=(3 / 4, 4 / 3), threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant="H/14", image_size=224, scan=True, remat_policy="nothing_saveable",
                 dtype="bfloat16"),
      predictor=dict(width=384, depth=12, num_heads=16, mlp_dim=1536),
      blocks=dict(num_context=64, num_blocks=4, block_size=45),
      momentum=0.996, momentum_steps=a.steps)

  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_percent=100 * 40 / 300, end=1e-6 / c.lr)
  c.optim = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.04 * c.lr, clip_norm=None,
                 weight_decay_end=0.4 * c.lr, weight_decay_steps=a.steps,
                 freeze=("teacher/.*", "pos_embedding"))
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=128)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.keep_ckpt_percent = 10

  if a.runlocal:
    c.batch_size = 8
    c.total_steps = 3
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.input.update(image_size=64, threads=2)
    c.model = dict(
        image=dict(variant="mu/8", image_size=64),
        predictor=dict(width=16, depth=1, num_heads=2, mlp_dim=32),
        blocks=dict(num_context=16, num_blocks=4, block_size=11),
        momentum=0.996, momentum_steps=3)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    del c.keep_ckpt_percent
  return c
