"""SigLIP So400m/14 at 384 px, from scratch, on image-caption pairs.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/siglip/so400m14_384.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/siglip_so400m --config \
    configs/siglip/so400m14_384.py:data=/data/pairs,tokenizer=sentencepiece:/data/c4_en.model

An image of 384 px gives 27 x 27 patches of 14 px: the last 6 rows and columns are not seen, as in
the published model (378 px, the lowest scale of PS3).

Source: Zhai et al. 2023 (recipe as for B/16), Alabdulmohsin et al. 2023 (the So400m shape: 1152
wide, 27 blocks, MLP 4304, 16 heads). The public checkpoint was trained on WebLI, which is not
public: no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.siglip import common


def get_config(arg=None):
  """`arg`: data=DIR, tokenizer=SPEC, batch=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/pairs", tokenizer="bytes", batch=0, runlocal=False)
  return common.siglip(a, variant="So400m/14", image_size=384, total_examples=9_000_000_000)
