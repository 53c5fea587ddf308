"""MAE ViT-L/16 at 224 px: 75 % of the patches are hidden and predicted, normalised one by one.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/mae_l16.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/mae_l16 \
    --config configs/mim/mae_l16.py:data=/data/imagenet,labels

Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", table 8: batch 4,096,
learning rate 2.4e-3, 800 epochs (1,600 for the released weights: `epochs=1600`), 40 of them
warm-up. The paper fine-tunes its 1,600-epoch ViT-L to 85.9 % and probes it linearly at 75.8 % on
ImageNet-1K; no result of this config is claimed.
"""

from configs.mim import common


def get_config(arg=None):
  """`arg`: data=DIR, epochs=N, batch=N, labels (evaluate by kNN and few shots), runlocal."""
  return common.mae(arg, "L/16", num_visible=49)
