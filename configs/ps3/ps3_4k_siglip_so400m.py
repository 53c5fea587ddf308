"""PS3-4K on SigLIP So400m/14: 378 px, then selected patches of 756, 1512 and 3780.

Smoke run (CPU, two minutes; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/ps3/ps3_4k_siglip_so400m.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host, with --distributed):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/ps3_4k --config \
    configs/ps3/ps3_4k_siglip_so400m.py:data=/data/regions,init=/checkpoints/siglip_so400m,\
tokenizer=sentencepiece:/data/c4_en.model

Source: Shi et al. 2025 (arXiv 2503.19903 v2), table 13 and the released scripts: 75M samples,
global batch 4,096, learning rate 5e-6. Their result (table 1, 3,840 tokens of 18 % of the patches):
63.9 on average over seven benchmarks of a language model on top. Their data were not released: no
result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.ps3 import common


def get_config(arg=None):
  """`arg`: data=DIR, init=weights of SigLIP, tokenizer=SPEC, batch=N, tiles=N (64: see
  input_pipeline/README.md), runlocal.
  """
  a = config_lib.parse_arg(
      arg, data="data/regions", init="", tokenizer="bytes", batch=0, tiles=0,
      runlocal=False)
  return common.published(a, "siglip", "4k", batch_size=4096)
