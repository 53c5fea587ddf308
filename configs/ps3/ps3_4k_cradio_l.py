"""PS3-4K on C-RADIO v2 L/16: 384 px, then selected patches of 768, 1536 and 3840.

Smoke run (CPU, two minutes; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/ps3/ps3_4k_cradio_l.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host, with --distributed):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/ps3_4k_cradio --config \
    configs/ps3/ps3_4k_cradio_l.py:data=/data/regions,init=/weights/PS3-4K-C-RADIOv2,\
tokenizer=sentencepiece:/data/c4_en.model

Source: sizes as in the published weights; no training settings were released for this variant,
so these are of PS3-4K on SigLIP (Shi et al. 2025, arXiv 2503.19903 v2, table 13). Their data were
not released: no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib
from configs.ps3 import common


def get_config(arg=None):
  """`arg`: data=DIR, init=weights of this model, tokenizer=SPEC, batch=N, tiles=N (64: see
  input_pipeline/README.md), runlocal.
  """
  a = config_lib.parse_arg(
      arg, data="data/regions", init="", tokenizer="bytes", batch=0, tiles=0,
      runlocal=False)
  return common.published(a, "cradio", "4k", batch_size=4096)
