"""Pixio ViT-H/16 at 256 px: MAE with whole cells hidden, eight class tokens and a deep decoder.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/pixio_h16.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/pixio_h16 \
    --config configs/mim/pixio_h16.py:data=/data/web,labels

Source: arXiv 2512.15715 and its repository: cells of 4 x 4 patches, 4 of 16 seen; a decoder of 32
blocks of width 512; learned positions; batch 8,192, learning rate 8e-4, 642,000 steps, a tenth of
them warm-up; stochastic depth up to 0.4. Its data, two billion images of the web, are not public:
no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.mim import common


def get_config(arg=None):
  """`arg`: data=DIR, batch=N, labels (evaluate by kNN and few shots), runlocal."""
  a = config_lib.parse_arg(arg, data="data/web", batch=0, labels=False, runlocal=False)
  c = common.masked(
      a, variant="H/16", image_size=256, mask=dict(family="cell", cell=4, num_visible=64), lr=8e-4,
      batch_size=8192, total_examples=642_000 * 8192, warmup_examples=64_200 * 8192,
      image=dict(num_cls=8, posemb_init="normal", decoder_depth=32, drop_path=0.4))
  if a.runlocal:
    common.runlocal(c, a, cell=2)
  return c
