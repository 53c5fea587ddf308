"""A small CLIP on captions of quality: what UniQA's pretraining is worth, in minutes on a CPU.

  python -m input_pipeline.build --from distorted --out data/distorted
  python -m big_vision_ext.train --config configs/uniqa/demo.py --workdir runs/uniqa_demo
  python -m big_vision_ext.encode --task quality --weights runs/uniqa_demo --image photos/ \
    --short-side 96 --out ratings.csv

Squares of photographs, blurred, noisy, compressed, badly exposed or faded at five strengths, with
captions that a template makes of their scores and of what can be measured. The contrastive loss is
that of `pretrain.py`, copies of a caption are left out. Trained and tested pictures have no
photograph in common (`split=1` to 10). `bash launch/uniqa_study.sh` trains it from three seeds,
adds adapters from a few labels, and compares with no pretraining and with a linear probe.

Expected: see configs/uniqa/README.md. `:runlocal` is a smoke run of 2 steps; any data set of
captions will do for it (`data=data/sample`).

Source: the method is arXiv 2406.01069, sizes and data are ours.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# Squares of 64 of a picture's 96 px, at its own resolution.
_PX, _SHARE = 64, (64 / 96) ** 2


def get_config(arg=None):
  """`arg`: data=DIR, split=N, steps=N, seed=N, runlocal."""
  a = config_lib.parse_arg(arg, data="data/distorted", split=1, steps=600, seed=0, runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "clip"
  c.batch_size = 64
  c.total_steps = a.steps
  c.seed = a.seed

  c.input = dict(
      data=a.data, split="all", part=f"reference_{a.split}/train", image_size=_PX,
      tokenizer="bytes", text_len=112, clean_captions=False, one_caption=True,
      global_share=1.0, sentence_sampling=False, crop_scale=(_SHARE, _SHARE),
      crop_ratio=(1.0, 1.0), flip=True, cache_mb=100)
  c.model = dict(
      image=dict(width=96, depth=3, mlp_dim=256, num_heads=3, patch_size=8, image_size=_PX,
                 num_classes=64),
      text=dict(width=64, depth=2, mlp_dim=192, num_heads=2, vocab_size=259, text_len=112,
                eot_id=1),
      contrast=dict(form="softmax", duplicates="ignore"))

  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_steps=30)
  c.optim = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5, clip_norm=1.0)

  c.log_steps = 20
  c.ckpt_steps = 200
  test = dict(part=f"reference_{a.split}/test")
  c.evals = dict(zero_shot=dict(
      type="quality_zero_shot", input=test, crops="five_crop", bootstrap=200, batch_size=320,
      eval_percent=25))

  if a.runlocal:
    c.batch_size = 8
    c.total_steps = 2
    c.schedule = dict(type="cosine", warmup_steps=1)
    # Any data set has captions, few have ratings.
    c.input.update(split="train", part="", crop_scale=(0.9, 1.0))
    c.log_steps = 1
    c.evals = {}
  return c
