"""SigLIP B/16 at 224 px, from scratch, on image-caption pairs.

Local smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train --config configs/siglip/b16_224.py:runlocal,data=data/sample \
    --workdir runs/siglip_b16_smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --config configs/siglip/b16_224.py:data=/data/pairs \
    --workdir /checkpoints/siglip_b16

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training": batch 32,768, AdamW with
b2 0.95, learning rate 1e-3, weight decay 1e-4, T5 vocabulary of 32,000, 64 tokens. Its B/16 from
scratch reaches 73.4 % zero-shot ImageNet after five days on 32 TPUv4 (its table 1); that needs
WebLI, which is not public: no result of this config is claimed.
"""

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """See the module's docstring.

  Args:
    arg: `data=DIR`, `tokenizer=SPEC` (default bytes), `batch=N`, `runlocal`.
  """
  a = config_lib.parse_arg(arg, data="data/pairs", tokenizer="bytes", batch=32_768,
                           runlocal=False)
  c = config_lib.base_config()
  c.task = "siglip"
  c.batch_size = a.batch
  c.total_examples = 9_000_000_000

  c.input.data = a.data
  c.input.image_size = 224
  c.input.tokenizer = a.tokenizer
  c.input.global_share = 1.0
  c.input.sentence_sampling = False

  c.model = dict(
      image=dict(variant="B/16", image_size=224, scan=True, remat_policy="nothing_saveable",
                 dtype="bfloat16"),
      text=dict(variant="B", vocab_size=32_000, length=64, scan=True,
                remat_policy="nothing_saveable", dtype="bfloat16"),
  )

  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_examples=600_000_000)
  c.optim = dict(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4, clip_norm=1.0)

  c.ckpt_steps = 1_000
  c.keep_ckpt_steps = 20_000
  c.log_steps = 50
  c.evals.retrieval = dict(type="image_text_retrieval", input=dict(split="val"),
                           eval_percent=5.0, batch_size=1024)

  if a.runlocal:
    c.batch_size = 8
    del c.total_examples
    c.total_steps = 3
    c.input.image_size = 32
    c.model.image = dict(variant="mu/16", image_size=32)
    c.model.text = dict(variant="mu", vocab_size=512, length=16)
    c.input.text_len = 16
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.log_steps = 1
    c.evals.retrieval.batch_size = 8
  return c
