"""PS3 on your own images, regions and captions, sized for one accelerator.

First make records of your data, then train:
  python -m input_pipeline.build --from jsonl --images DIR --annotations FILE --out data/mine \
    --val-share 0.05
  python -m big_vision_ext.train --config configs/ps3/own_data.py:data=data/mine \
    --workdir runs/own_data

Smoke run (CPU, two minutes; needs the sample data, see the README):
  python -m big_vision_ext.train --config configs/ps3/own_data.py:runlocal,data=data/sample \
    --workdir runs/smoke

A ViT-B/16 at 256 px that looks at patches of 768 and 1536 px, from scratch or from `init=` a SigLIP
workdir. The hyper-parameters are ours and not tuned on any data set but the sample one. What to
change first: `lr` (lower when starting from good weights), `batch` (as large as fits: contrastive
learning lives on negatives), `epochs`, and `tokenizer`.
"""

import ml_collections

from big_vision_ext.core import config as config_lib
from configs.ps3 import common


def get_config(arg=None):
  """`arg`: data=DIR, init=WORKDIR, tokenizer=SPEC, vocab=N, batch=N, epochs=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/mine", init="", tokenizer="bytes", vocab=259, batch=256,
                           epochs=30.0, runlocal=False)
  scales = (256, 768, 1536)
  c = ml_collections.ConfigDict()
  c.task = "ps3"
  c.batch_size = a.batch
  c.total_epochs = a.epochs
  c.seed = 0

  c.input = dict(data=a.data, image_size=scales[-1], tokenizer=a.tokenizer, text_len=64,
                 global_share=0.25, max_boxes=16, threads=8)
  c.model = dict(
      image=dict(variant="B/16", posemb_grid=(16, 16), scales=scales, max_select_num=640,
                 select_layers=(0, 3, 7, 11), selection_size=768, selection_kernel=24,
                 selection_hidden=256, selection_out=256, scan=True, remat_policy="dots_saveable",
                 dtype="bfloat16"),
      text=dict(variant="B", vocab_size=a.vocab, text_len=64, act="gelu", scan=True,
                remat_policy="dots_saveable", dtype="bfloat16"),
      # Bottom-up selection is taught all boxes of the image: with few boxes per image annotated,
      # set max_boxes=0 in both places to teach it the sampled one, as the release does.
      selection_loss="bce_dice", max_boxes=16,
      temperature_init=10.0, bias_init=-5.0,
  )
  if a.init:
    c.init = dict(path=a.init, allow_missing=common.NEW_PARAMETERS)

  c.lr = 3e-4 if not a.init else 3e-5
  c.schedule = dict(type="cosine", warmup_percent=5)
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=1e-5, clip_norm=1.0)

  c.log_steps = 20
  c.ckpt_steps = 500
  c.evals = dict(
      regions=dict(type="region_retrieval", input=dict(split="val"), batch_size=64,
                   eval_percent=20),
      whole=dict(type="image_text_retrieval", input=dict(split="val"), batch_size=64,
                 eval_percent=20))

  if a.runlocal:
    c.batch_size = 8
    del c.total_epochs
    c.total_steps = 2
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.input.update(image_size=192, text_len=16, threads=2)
    c.model.image = dict(
        width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=16, posemb_grid=(2, 2),
        scales=(32, 96, 192), max_select_num=16, select_layers=(0, 1), selection_size=96,
        selection_kernel=24, selection_hidden=16, selection_out=16, selection_depth=1)
    c.model.text = dict(width=32, depth=2, mlp_dim=64, num_heads=2, vocab_size=a.vocab,
                        text_len=16)
    c.log_steps = 1
    c.evals.regions.update(batch_size=8, eval_percent=None, selections=("topdown",))
    del c.evals["whole"]
  return c
