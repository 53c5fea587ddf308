"""UniQA's pretraining: CLIP ViT-B/16 on captions of image quality and aesthetics.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/uniqa/pretrain.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/uniqa --config \
    configs/uniqa/pretrain.py:data=/data/uniqa,init=/data/clip,tokenizer=clip:/data/clip

`init` is OpenAI's CLIP ViT-B/16: its ViT-B-16.pt, or a folder of transformers or open_clip
(weights: MIT, not part of this project); `init=none` begins from random values. `tokenizer` is
CLIP's vocabulary, which lies in a transformers folder too, or is the bpe_simple_vocab_16e6.txt.gz
of github.com/openai/CLIP. `variant` is B/32, B/16, L/14 or L/14@336, of which `init` must be then.

Source: "UniQA: Unified Vision-Language Pre-training for Image Quality and Aesthetic Assessment"
(arXiv 2406.01069) and its code: the symmetric softmax loss over the global batch, learning rate
5e-6 without warm-up or schedule, b2 0.98, eps 1e-6, 5 epochs, no augmentation: the middle square
of each image, at 224 px, with one of its captions an epoch. The code's batch size is a
placeholder; 960 is ours.

`recipe=code` is literally what the public code does: Adam with 0.2 of L2 in the gradient of all
parameters, the temperature among them, which is not limited, and a caption that occurs twice in a
batch is wrong for its copy's image. By default the decay is AdamW's, on kernels and tables alone,
the temperature stays below 100, and such pairs are left out. Unlike the code's, records are
shuffled in both, and computation is in bfloat16 with float32 parameters where the code has
float16.

No result of this config is claimed.
"""

import ml_collections

from big_vision_ext.core import config as config_lib
from big_vision_ext.core.typed import ConfigError

_RECIPES = ("ours", "code")


def get_config(arg=None):
  """`arg`: data=DIR, init=PATH|none, tokenizer=SPEC, variant=NAME, recipe=ours|code, batch=N,
  runlocal."""
  a = config_lib.parse_arg(
      arg, data="data/uniqa", init="", tokenizer="", variant="B/16", recipe="ours", batch=0,
      runlocal=False)
  if a.recipe not in _RECIPES:
    raise ConfigError(f"config argument recipe={a.recipe!r}: expected one of {', '.join(_RECIPES)}")
  c = ml_collections.ConfigDict()
  c.task = "clip"
  c.batch_size = a.batch or 960
  c.total_epochs = 5
  c.seed = 0
  init = a.init or ("none" if a.runlocal else "data/clip_vit_b16")
  if init != "none":
    c.init = init

  px = 336 if a.variant.endswith("@336") else 224
  # The largest square in the middle, resized as CLIP's images are.
  c.input = dict(
      data=a.data, image_size=px, tokenizer=a.tokenizer or "clip:data/clip_vit_b16", text_len=77,
      canonicalize=False, clean_captions=False, one_caption=True, global_share=1.0,
      sentence_sampling=False, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), resize="bicubic",
      threads=16, prefetch=2)
  tower = dict(scan=True, remat_policy="nothing_saveable", dtype="bfloat16")
  c.model = dict(variant=a.variant, image=dict(tower), text=dict(tower), max_temperature=100.0,
                 contrast=dict(form="softmax", duplicates="ignore"))

  c.lr = 5e-6
  c.schedule = dict(type="constant")
  # PyTorch's decay of 0.2 times the learning rate: ours is not multiplied by it.
  c.optim = dict(
      name="adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-6, clip_norm=None,
      wd_mults=((".*/(kernel|embedding|(cls_)?pos_embedding)", 1.0),))
  if a.recipe == "code":
    c.optim.update(name="adam", weight_decay=0.2, wd_mults=((".*", 1.0),))
    c.model.update(max_temperature=None)
    c.model.contrast.duplicates = "negatives"
  c.mesh = dict(data=-1, fsdp=1, tensor=1)

  c.log_steps = 50
  c.ckpt_steps = 500
  c.keep_ckpt_percent = 20
  c.evals = dict(retrieval=dict(
      type="image_text_retrieval", input=dict(split="val"), batch_size=512, eval_percent=20))

  if a.runlocal:
    c.batch_size = a.batch or 8
    del c.total_epochs
    c.total_steps = 3
    c.input.update(image_size=32, threads=2)
    c.model.variant = ""
    c.model.image = dict(variant="mu/16", image_size=32, num_classes=16)
    c.model.text = dict(variant="mu")
    if not a.tokenizer:
      # Bytes, of which 1 ends a text, unless a vocabulary is named.
      c.input.tokenizer = "bytes"
      c.model.text.update(vocab_size=259, eot_id=1)
    c.log_steps = 1
    del c.keep_ckpt_percent
    c.evals.retrieval.update(batch_size=8, eval_percent=None)
  return c
