"""SigLIP B/16 at 224 px, from scratch, on image-caption pairs.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/siglip/b16_224.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/siglip_b16 --config \
    configs/siglip/b16_224.py:data=/data/pairs,tokenizer=sentencepiece:/data/c4_en.model

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training": batch 32,768, AdamW with
b2 0.95, learning rate 1e-3, decoupled weight decay 1e-4, a vocabulary of 32,000, 64 tokens. The
paper's B/16 from scratch reaches 73.4 % zero-shot ImageNet top-1 after five days on 32 TPUv4 (its
table 1), on WebLI, which is not public: no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.siglip import common


def get_config(arg=None):
  """`arg`: data=DIR, tokenizer=SPEC, batch=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/pairs", tokenizer="bytes", batch=0, runlocal=False)
  return common.siglip(a, variant="B/16", image_size=224, total_examples=9_000_000_000)
