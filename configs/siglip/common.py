"""What the from-scratch SigLIP configs share (Zhai et al. 2023)."""

import ml_collections


def siglip(a, *, variant: str, image_size: int, total_examples: int) -> ml_collections.ConfigDict:
  """Both towers of a size, trained on global captions with the sigmoid loss.

  Args:
    a: parsed argument with `data`, `tokenizer`, `batch`, `runlocal`.
    variant: of the image tower, with its patch size; the text tower has the same size.
    image_size: pixels.
    total_examples: length of the run.
  """
  c = ml_collections.ConfigDict()
  c.task = "siglip"
  c.batch_size = a.batch or 32_768
  c.total_examples = total_examples
  c.seed = 0

  c.input = dict(
      data=a.data, image_size=image_size, tokenizer=a.tokenizer, text_len=64, global_share=1.0,
      sentence_sampling=False, threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant=variant, image_size=image_size, scan=True,
                 remat_policy="nothing_saveable", dtype="bfloat16"),
      text=dict(variant=variant.split("/")[0], vocab_size=32_000, text_len=64, scan=True,
                remat_policy="nothing_saveable", dtype="bfloat16"),
      temperature_init=10.0, bias_init=-10.0,
  )

  c.lr = 1e-3
  c.schedule = dict(type="cosine", warmup_percent=5)
  # The paper's decay of 1e-4 is not multiplied by the learning rate, and neither is ours.
  c.optim = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4, clip_norm=1.0)
  # So400m's width, 1152, divides by 128 and not by 256.
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=128)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.keep_ckpt_percent = 10
  c.evals = dict(retrieval=dict(
      type="image_text_retrieval", input=dict(split="val"), batch_size=1024, eval_percent=5))

  if a.runlocal:
    c.batch_size = a.batch or 8
    del c.total_examples
    c.total_steps = 3
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.input.update(image_size=32, text_len=16, threads=2)
    c.model.image = dict(variant="mu/16", image_size=32)
    c.model.text = dict(variant="mu", vocab_size=32_000, text_len=16)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    del c.keep_ckpt_percent
    c.evals.retrieval.update(batch_size=8, eval_percent=None)
  return c
