"""CrossMAE ViT-B/16: the decoder's queries attend to the visible patches only, and a few are asked.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/crossmae_b16.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/crossmae_b16 \
    --config configs/mim/crossmae_b16.py:data=/data/imagenet,labels

Source: Fu et al. 2024, "Rethinking Patch Dependence for Masked Autoencoders": twelve blocks of
cross-attention, each on its own mixture of the encoder's layers; a quarter of all patches is seen,
another predicted (`targets=147` predicts all that are hidden). MAE's recipe otherwise. The paper
fine-tunes it to 83.7 % on ImageNet-1K; no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.mim import common


def get_config(arg=None):
  """`arg`: data=DIR, epochs=N, targets=N, batch=N, labels (evaluate: kNN, few shots), runlocal."""
  a = config_lib.parse_arg(arg, data="data/imagenet", epochs=800, targets=49, batch=0,
                           labels=False, runlocal=False)
  c = common.masked(
      a, variant="B/16", image_size=224, lr=2.4e-3, batch_size=4096,
      mask=dict(family="random", num_visible=49, num_target=a.targets),
      image=dict(decoder="cross", decoder_depth=12), total_examples=a.epochs * common.IMAGENET,
      warmup_examples=40 * common.IMAGENET)
  common.fixed_positions(c)
  if a.runlocal:
    common.runlocal(c, a, num_target=4)
  return c
