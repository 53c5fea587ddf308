"""A low-resolution SigLIP on the sample data: what the PS3 demo starts from, and its baseline."""

import ml_collections

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  a = config_lib.parse_arg(arg, data="data/sample", steps=300, runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "siglip"
  c.batch_size = 32
  c.total_steps = a.steps
  c.seed = 0

  c.input = dict(data=a.data, image_size=128, text_len=64, global_share=0.25, cache_mb=500)
  c.model = dict(
      image=dict(width=128, depth=3, mlp_dim=512, num_heads=4, patch_size=8, image_size=128,
                 act="gelu"),
      text=dict(width=128, depth=2, mlp_dim=512, num_heads=4, vocab_size=259, text_len=64,
                act="gelu"),
      pool="region", temperature_init=10.0, bias_init=-3.4,
  )
  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_steps=50)
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=1e-7, clip_norm=1.0)
  c.log_steps = 10
  c.ckpt_steps = 100
  c.evals = dict(regions=dict(type="region_retrieval", input=dict(split="val"), batch_size=64,
                              selections=("low",)))
  return c
