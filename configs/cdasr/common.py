"""What the configs of CDASR share: network, encoder, domains, and what is measured.

The paper says how the encoder's vector is processed (h = 1024, s = 512) and that the loss has terms
of pixels, of perception and of semantics [S]; network, sizes of crops, rates, lengths and weights
are ours [P], after EDSR's and MZSR's. Fields say which they are.
"""

import ml_collections

from big_vision_ext.core import config as config_lib

# Side of the high-resolution crops: the low-resolution ones have at least 24 px [P].
PATCHES = {2: 192, 3: 192, 4: 192, 8: 256, 16: 384}
# What a new model has beside its encoder, under its names.
NEW = r"(?!encoder/).*"


def cdasr(a) -> ml_collections.ConfigDict:
  """A network of a scale with its encoder, on domains.

  Args:
    a: parsed argument with `net`, `scale`, `width`, `depth`, `tower`, `weights`, `condition`,
      `spatial`, `hidden`, `semantic`, `perceptual`, `semantics`, `data`, `domains`, `held_out`,
      `n`, `steps`, `batch`, `size`, `seed`, `each`.
  """
  if a.scale not in PATCHES:
    raise config_lib.ConfigError(
        f"config argument scale={a.scale}: expected one of {', '.join(map(str, PATCHES))}")
  c = ml_collections.ConfigDict()
  c.task = "cdasr"
  c.total_steps = a.steps
  c.seed = a.seed

  size = a.size or PATCHES[a.scale]
  c.input = dict(
      data=domains(a, a.domains), split="train", first=a.n, image_size=size, crop="plain",
      enlarge=False, captions=False, cache_mb=256, threads=4)
  fields = {k: a[k] for k in ("width", "depth") if a[k]}
  needed = a.condition != "none" or a.perceptual or a.semantics
  c.model = dict(
      net=dict(name=a.net, scale=a.scale, fields=fields), image_size=size,
      encoder=encoder(a.tower) if needed else None, condition=a.condition,
      align=dict(hidden=a.hidden, semantic=a.semantic, width=a.width or 64, spatial=a.spatial),
      weights=dict(pixel=1.0, perceptual=a.perceptual, semantic=a.semantics), augment=True)

  c.optim = dict(name="adam", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=None,
                 freeze=("encoder/.*",) if needed else ())
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.log_steps = 100
  c.ckpt_steps = 5_000
  # Whole pictures, the square in the middle of each at its own resolution.
  shown = dict(split="val", first=0, eval_plain=True, image_size=a.eval_size or size, group=1)
  c.evals = dict(seen=dict(
      type="super_resolution", input=shown, batch_size=16, each=a.each, eval_percent=25))
  if a.held_out:
    c.evals.held_out = dict(
        type="super_resolution", input=dict(shown, data=domains(a, a.held_out)), batch_size=16,
        each=a.each, shots=shots(a.shots), steps=(0, 1, 5, 10))
  return c


def encoder(tower: str) -> dict:
  """`config.model.encoder`: of a published CLIP by its name, e.g. "B/32" [P], or of weights."""
  from big_vision_ext.tasks import clip

  if tower in clip.VARIANTS:
    return dict(task="clip", model=dict(variant=tower))
  # Here, since nothing else in a config reads files.
  from big_vision_ext import weights

  try:
    found = weights.read(tower)
  except ValueError as error:
    raise config_lib.ConfigError(
        f"config argument tower={tower}: expected {', '.join(clip.VARIANTS)}, or weights of a "
        f"tower ({error})") from error
  return dict(task=found.task, model=config_lib.to_dict(found.model))


def begin(a) -> dict:
  """`config.init` of a model whose encoder is loaded and whose network is new.

  The tower's weights are `weights`; without, those that `tower` is itself, or of a published one
  the folder that they are converted to.
  """
  from big_vision_ext.tasks import clip

  # A classifier is an image tower itself.
  names = "img/(.*)" if encoder(a.tower)["task"] != "classify" else "(.*)"
  path = a.weights or ("data/clip_vit_b32" if a.tower in clip.VARIANTS else a.tower)
  return dict(path=path, map=((names, r"encoder/\1"),), allow_missing=(NEW,),
              allow_extra=(NEW,) if names != "(.*)" else ())


def domains(a, names: str):
  """`input.data` of "faces+natural": folders of these names in `data`; that itself for ""."""
  if not names:
    return a.data
  return {name: dict(path=f"{a.data}/{name}") for name in names.split("+")}


def shots(text) -> tuple[int, ...]:
  """Numbers as an argument writes them: 5, or "1+5+10"; "" for none."""
  try:
    return tuple(int(n) for n in str(text).split("+") if n)
  except ValueError as error:
    raise config_lib.ConfigError(f"config argument shots={text}: expected as 1+5+10") from error


def runlocal(c: ml_collections.ConfigDict, a) -> None:
  """Shrinks a config to three steps on a CPU: about 32 px, 8 channels, a tower of one block."""
  c.total_steps = 3
  # Low resolution of at least 8 px, which is a window of SwinIR.
  side = -(-32 // (8 * a.scale)) * 8 * a.scale
  c.model.net["fields"].update(width=12 if a.net.startswith("swinir") else 8, depth=1)
  c.model.update(image_size=side, align=dict(hidden=16, semantic=64, width=8, spatial=a.spatial))
  if c.model.encoder is not None:
    c.model.encoder = dict(task="clip", model=dict(
        image=dict(variant="mu/16", image_size=32, num_classes=16),
        text=dict(variant="mu", vocab_size=259, eot_id=1)))
  # Any data set will do, twice, as two domains.
  c.input.update(image_size=side, enlarge=True, first=0, threads=2, cache_mb=0)
  c.input.data = {name: dict(path=a.data) for name in ("one", "two")}
  c.log_steps = 1
  c.evals = {}
