"""The config of tests that train: a few steps of the toy task. `data=DIR` is to be given."""

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """`data`: the data set; `steps`: length of the run."""
  a = config_lib.parse_arg(arg, data="", steps=20)
  c = config_lib.base_config()
  c.task = "tests.toy_task"
  c.batch_size = 8
  c.total_steps = a.steps
  c.input.data = a.data
  c.input.image_size = 8
  c.input.text_len = 4
  c.input.threads = 1
  c.lr = 1e-2
  c.optim = dict(weight_decay=1e-4)
  c.schedule = dict(type="cosine", warmup_steps=min(3, a.steps))
  c.log_steps = 2
  c.ckpt_steps = 5
  c.evals.held_out = dict(type="image_text_retrieval", input=dict(split="val"), eval_steps=4,
                         batch_size=4)
  return c
