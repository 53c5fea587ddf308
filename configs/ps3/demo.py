"""PS3 in small: a high-resolution encoder pretrained on a CPU in minutes.

  python -m input_pipeline.build --from sample --out data/sample
  python -m big_vision_ext.train --config configs/ps3/demo.py --workdir runs/demo

Photographs with small tags, labels and stickers on them, read at 768 px where the low-resolution
pass has 96: of 11,520 high-resolution patches one look takes 200 (1.7 %). The recipe is PS3's
(regions and whole images, selection forced to the region in training, pooling of its tokens only,
released selection loss), with sizes and rates for two cores. Four captions share an image, where
the paper has one: a step then takes half the time. The selection loss counts three times, since
everything is learned from scratch here, where the paper starts from SigLIP.

`:surprise` trains without boxes (ours): images and the captions of the whole of them; the encoder
takes what the bottom-up score puts first, which is taught to find the cells whose detail the
low-resolution view foretells worst (`big_vision_ext/tasks/_ps3_surprise.py`). Boxes only measure
it, on canvases that were not trained on, beside random selection and what teaches it:
  python -m big_vision_ext.train --config configs/ps3/demo.py:surprise --workdir runs/surprise
  python -m big_vision_ext.evaluate --workdir runs/surprise    # selection/bottomup/recall_at_200
The same but not taught: `--config.model.selection_weight=0`; with surprise of the image alone, for
which no network is trained: `--config.model.surprise.hidden=0`. These and the demo taught by boxes,
three seeds each: `bash launch/study.sh surprise`.

Expected: see "Does the method work here?" in the README; 5 to 12 minutes on two cores with Python
3.12. `:runlocal` is a smoke run of 2 steps.
"""

import ml_collections

from big_vision_ext.core import config as config_lib
from configs.ps3 import common


def get_config(arg=None):
  """`arg`: data=DIR, init=WORKDIR, steps=N, surprise, runlocal."""
  a = config_lib.parse_arg(arg, data="data/sample", init="", steps=1200, surprise=False,
                           runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "ps3"
  c.batch_size = 8
  c.total_steps = a.steps
  c.seed = 0

  c.input = dict(data=a.data, image_size=768, resize="fast", text_len=64, global_share=0.25,
                 captions_per_image=4, cache_mb=2000)
  c.model = dict(
      image=dict(
          width=64, depth=2, mlp_dim=256, num_heads=2, patch_size=8, posemb_grid=(12, 12),
          scales=(96, 384, 768), max_select_num=200, select_layers=(0, 1), selection_size=384,
          selection_kernel=16, selection_hidden=32, selection_out=32, selection_depth=1),
      text=dict(width=64, depth=2, mlp_dim=256, num_heads=2, vocab_size=259, text_len=64,
                act="gelu"),
      captions_per_image=4, selection_loss="bce", selection_weight=3.0,
      temperature_init=10.0, bias_init=-3.4,
  )
  if a.init:
    c.init = dict(path=a.init, allow_missing=common.NEW_PARAMETERS)
  if a.surprise:
    c.input.update(global_share=1.0, captions_per_image=1)
    c.model.update(captions_per_image=1, surprise=dict(hidden=128, side=32, share=0.1))
    if a.init:
      c.init.allow_missing = (*common.NEW_PARAMETERS, "surprise/.*")

  c.lr = 2e-3
  c.schedule = dict(type="cosine", warmup_steps=50)
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=1e-7, clip_norm=1.0)

  c.log_steps = 10
  c.ckpt_steps = 100
  c.evals = dict(regions=dict(type="region_retrieval", input=dict(split="val"), batch_size=32))
  if a.surprise:
    c.evals = dict(selection=dict(
        type="selection_quality", input=dict(split="val"), batch_size=32,
        selections=("bottomup", "random", "surprise")))

  if a.runlocal:
    c.batch_size = 8
    c.total_steps = 2
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.log_steps = 1
    if "regions" in c.evals:
      c.evals.regions.selections = ("topdown",)
  return c
