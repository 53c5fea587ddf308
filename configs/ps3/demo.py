"""PS3 in small: a high-resolution encoder pretrained on a CPU in minutes."""

import ml_collections

from big_vision_ext.core import config as config_lib
from configs.ps3 import common


def get_config(arg=None):
  a = config_lib.parse_arg(arg, data="data/sample", init="", runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "ps3"
  c.batch_size = 32
  c.total_steps = 600
  c.seed = 0

  c.input = dict(data=a.data, image_size=768, text_len=64, max_boxes=0, threads=2, prefetch=4,
                 cache_mb=2000)
  c.model = dict(
      image=dict(
          width=128, depth=3, mlp_dim=512, num_heads=4, patch_size=8, posemb_grid=(12, 12),
          scales=(96, 384, 768), max_select_num=240, select_layers=(0, 2),
          selection_size=384, selection_kernel=16, selection_hidden=64, selection_out=64,
          selection_depth=1),
      text=dict(width=128, depth=2, mlp_dim=512, num_heads=4, vocab_size=259, text_len=64,
                act="gelu"),
      temperature_init=10.0, bias_init=-3.4,
  )
  if a.init:
    c.init = dict(path=a.init, allow_missing=common.NEW_PARAMETERS)
  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_steps=50)
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=1e-7, clip_norm=1.0)
  c.log_steps = 10
  c.ckpt_steps = 100
  c.evals = dict(regions=dict(type="region_retrieval", input=dict(split="val"), batch_size=32))
  return c
