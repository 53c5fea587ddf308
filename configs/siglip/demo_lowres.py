"""A low-resolution SigLIP on the sample data: the baseline of the PS3 demo.

  python -m big_vision_ext.train --config configs/siglip/demo_lowres.py --workdir runs/demo_lowres

Towers, captions, batches and number of steps are those of `configs/ps3/demo.py`, but it sees 96 px
only. It pools the tokens on the sample's box, in training and in evaluation, so that it is told as
much about the region as PS3 is, and differs in the pixels it has.

Expected: see "Does the method work here?" in the README. `:runlocal` is a smoke run of 2 steps.
"""

import ml_collections

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """`arg`: data=DIR, steps=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/sample", steps=1200, runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "siglip"
  c.batch_size = 8
  c.total_steps = a.steps
  c.seed = 0

  c.input = dict(data=a.data, image_size=96, text_len=64, global_share=0.25,
                 captions_per_image=4, cache_mb=500)
  c.model = dict(
      image=dict(width=64, depth=2, mlp_dim=256, num_heads=2, patch_size=8, image_size=96,
                 act="gelu"),
      text=dict(width=64, depth=2, mlp_dim=256, num_heads=2, vocab_size=259, text_len=64,
                act="gelu"),
      pool="region", captions_per_image=4, temperature_init=10.0, bias_init=-3.4,
  )

  c.lr = 2e-3
  c.schedule = dict(type="cosine", warmup_steps=50)
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=1e-7, clip_norm=1.0)

  c.log_steps = 10
  c.ckpt_steps = 200
  c.evals = dict(regions=dict(type="region_retrieval", input=dict(split="val"), batch_size=64,
                              selections=("low",)))

  if a.runlocal:
    c.batch_size = 8
    c.total_steps = 2
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.log_steps = 1
  return c
