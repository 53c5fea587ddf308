"""What the configs of masked autoencoders share (He et al. 2022, table 8, and its repository)."""

import ml_collections

from big_vision_ext.core import config as config_lib

IMAGENET = 1_281_167


def mae(arg: str | None, variant: str, num_visible: int) -> ml_collections.ConfigDict:
  """MAE as published, at 224 px.

  Args:
    arg: data=DIR, epochs=N, batch=N, labels (evaluate by kNN and few shots), runlocal.
    variant: of the encoder, with its patch size.
    num_visible: patches that are seen, a quarter of all.
  """
  a = config_lib.parse_arg(arg, data="data/imagenet", epochs=800, batch=0, labels=False,
                           runlocal=False)
  c = masked(
      a, variant=variant, image_size=224, mask=dict(family="random", num_visible=num_visible),
      lr=2.4e-3, batch_size=4096, total_examples=a.epochs * IMAGENET,
      warmup_examples=40 * IMAGENET)
  fixed_positions(c)
  if a.runlocal:
    runlocal(c, a)
  return c


def masked(a, *, variant: str, image_size: int, mask: dict, lr: float, batch_size: int,
           total_examples: int, warmup_examples: int, image: dict | None = None,
           crop_scale: tuple[float, float] = (0.2, 1.0)) -> ml_collections.ConfigDict:
  """Pictures alone, cropped and mirrored; AdamW with a cosine; positions as they begin.

  Args:
    a: parsed argument with `data`, `batch`, `labels`, `runlocal`.
    variant: of the encoder, with its patch size.
    image_size: pixels.
    mask: `config.model.mask`.
    lr: at `batch_size`; it is scaled with another batch.
    batch_size: of the published recipe.
    total_examples, warmup_examples: length of the run and of its warm-up.
    image: further fields of `models.mae.MaskedAutoencoder`.
    crop_scale: least and greatest share of an image that is cropped.
  """
  c = ml_collections.ConfigDict()
  c.task = "mae"
  c.batch_size = a.batch or batch_size
  c.total_examples = total_examples
  c.seed = 0

  c.input = dict(
      data=a.data, image_size=image_size, captions=False, flip=True, crop_scale=crop_scale,
      threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant=variant, image_size=image_size, scan=True,
                 remat_policy="nothing_saveable", dtype="bfloat16", **(image or {})),
      mask=mask, norm_pix=True)

  c.lr = lr * c.batch_size / batch_size
  c.schedule = dict(type="cosine", warmup_examples=warmup_examples)
  # Published as PyTorch's decay of 0.05, which is multiplied by the learning rate; ours is not.
  # Biases and norms are not decayed; class and mask tokens are, as they are no vectors there.
  c.optim = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05 * c.lr, clip_norm=None,
                 wd_mults=((".*/kernel|cls|mask_token", 1.0),), freeze=())
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=64)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.keep_ckpt_percent = 25
  c.evals = {}
  if a.labels:
    c.evals.knn = dict(type="knn", input=dict(split="val"), batch_size=1024, eval_percent=10)
    c.evals.fewshot = dict(type="fewshot", input=dict(split="val"), batch_size=1024,
                           eval_percent=25)
  return c


def fixed_positions(c: ml_collections.ConfigDict) -> None:
  """Sine and cosine positions that are not trained."""
  c.optim.freeze = (".*pos_embedding",)


def runlocal(c: ml_collections.ConfigDict, a, *, num_visible: int = 4, **mask) -> None:
  """Shrinks a config to three steps on a CPU: 32 px in 16 patches of 8 px."""
  c.batch_size = a.batch or 8
  del c.total_examples
  c.total_steps = 3
  c.schedule = dict(type="cosine", warmup_steps=1)
  c.input.update(image_size=32, threads=2)
  kept = ("decoder", "num_cls", "posemb_init", "drop_path")
  keep = {k: c.model.image[k] for k in kept if k in c.model.image}
  c.model.image = dict(variant="mu/8", image_size=32, decoder_width=32, decoder_depth=2,
                       decoder_heads=2, decoder_mlp_dim=64, **keep)
  c.model.mask = dict(c.model.mask, num_visible=num_visible, **mask)
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.log_steps = 1
  c.keep_ckpt_percent = None
  c.evals = {}
