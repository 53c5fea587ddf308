"""PS3: pre-training a vision encoder at up to 4K (Shi et al. 2025, arXiv 2503.19903).

Each sample is an image, a box and the caption of what is in it (or the whole image and its global
caption). The image tower encodes the image once at low resolution, is told by the caption where
to look, encodes those patches at high resolution, and the pooled region is contrasted with the
captions of the batch. The selection scores are taught the box. `captions_per_image` lets several
captions share an image and its low-resolution pass.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import boxes as geometry
from big_vision_ext.core import flops, typed
from big_vision_ext.models import ps3, selection_head, vit
from big_vision_ext.objectives import contrastive
from big_vision_ext.objectives import selection as selection_loss
from big_vision_ext.tasks import _ps3_surprise, _towers

SELECTIONS = ("topdown", "bottomup", "random", "gt")


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "ps3".

  Attributes:
    image: fields of `models.ps3.PS3Vision`, with `variant` as a shorthand.
    text: fields of `models.text.TextTransformer`.
    selection_loss: "bce" as released (both scores are taught the sample's box), or "bce_dice" as
      in the paper (cross-entropy and DICE; bottom-up is taught the union of all boxes).
    max_boxes: how many boxes of an image the input ships (`input.max_boxes`). Above 0, bottom-up
      is taught their union under "bce" as well.
    tiles: how many tiles of the largest scale the input ships around the caption's region, with a
      view of the whole, in place of the whole at that scale (`input.tiles`); 0 for the whole. See
      `models.ps3.PS3Vision`.
    view_size: side in pixels of that view (`input.view_size`).
    captions_per_image: how many captions of each image the input ships
      (`input.captions_per_image`), each with its box; the low-resolution pass serves all of them.
    selection_weight: factor of the selection loss.
    surprise: given, no boxes are read in training: see `_ps3_surprise`.
    temperature_init, bias_init: of the contrastive loss.
    contrast: its form and how it is computed.
  """

  image: dict[str, Any]
  text: dict[str, Any]
  selection_loss: Literal["bce", "bce_dice"] = "bce"
  max_boxes: int = 0
  tiles: int = 0
  view_size: int = 1512
  captions_per_image: int = 1
  selection_weight: float = 1.0
  surprise: _ps3_surprise.Surprise | None = None
  temperature_init: float = 10.0
  bias_init: float = -10.0
  contrast: contrastive.Contrast = contrastive.Contrast()


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  return Task(typed.build(Config, model_config, "config.model"))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring."""

  config: Config

  def __post_init__(self):
    c = self.config
    if c.captions_per_image < 1 or c.captions_per_image > 1 and c.tiles:
      raise typed.ConfigError(
          f"config.model.captions_per_image={c.captions_per_image} with tiles={c.tiles}: expected "
          "1 or more captions, and only one where tiles around its region stand for the image")
    image = vit.build(ps3.PS3Vision, _towers.plain(c.image), "config.model.image")
    set_field = lambda name, value: object.__setattr__(self, name, value)
    if c.surprise:
      _ps3_surprise.check(c, image)
    set_field("vision", image)
    set_field("text", _towers.text_tower(c.text, out_dim=image.out_width))
    set_field("prompt", selection_head.PromptProj(image.width))
    set_field("outputs", {
        "image": self.embed_image, "text": self.embed_text, "region": self.embed_region,
        "encode": self.encode} | ({"surprise": self.surprise} if c.surprise else {}))

  @property
  def image_size(self) -> int:
    """The largest scale, in pixels."""
    return self.vision.scales[-1]

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the forward pass."""
    tokens = sum(self.vision.budget())
    looks = (tokens // 2, tokens - tokens // 2) if self.vision.look_policy else (tokens,)
    if c := self.config.surprise:
      parts = self._vision_flops((tokens,), num_prompts=1)
      own = _ps3_surprise.flops(c, self.vision)
      return flops.train(parts["total"] + own + _towers.text_flops(self.text))
    captions = self.config.captions_per_image
    parts = self._vision_flops(looks, num_prompts=1 + captions)
    each = parts["high"] + _towers.text_flops(self.text)
    return flops.train(parts["low"] + parts["select"] + captions * each)

  def forward_flops(self, selected: Sequence[int], num_prompts: int = 1) -> int:
    """FLOPs of one image and one text, with looks of so many tokens each; () for none."""
    parts = self._vision_flops(selected, num_prompts)
    return parts["total" if sum(selected) else "low"] + _towers.text_flops(self.text)

  def _vision_flops(self, selected, num_prompts):
    v = self.vision
    return flops.ps3(
        scales=v.scales, selected=selected, width=v.width, depth=v.depth,
        mlp_dim=v.mlp_dim, patch_size=v.patch_size, num_select_layers=len(v.select_layers),
        num_prompts=num_prompts, num_maps=v.num_maps,
        policy_hidden=v.policy_hidden if v.look_policy else 0, selection_size=v.selection_size,
        selection_hidden=v.selection_hidden,
        selection_out=v.selection_out, selection_depth=v.selection_depth,
        selection_kernel=v.selection_kernel, highres_selection=v.highres_branch,
        adapter_hidden=v.adapter_hidden, adapter_depth=v.adapter_depth, pool_width=v.pool_width,
        pool_mlp_dim=v.pool_mlp_dim)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    spec = _towers.batch_spec(
        batch_size, self._train_side, self.text.text_len, self.config.captions_per_image)
    if self.config.surprise:
      return {name: spec[name] for name in ("image", "text")}
    if n := self.config.tiles:
      side = self.vision.patch_size * self.vision.scales[-1] // self.vision.scales[0]
      spec["tiles"] = jax.ShapeDtypeStruct((batch_size, n, side, side, 3), np.uint8)
      spec["tile_at"] = jax.ShapeDtypeStruct((batch_size, n), np.int32)
    if n := self.config.max_boxes:
      spec["boxes"] = jax.ShapeDtypeStruct((batch_size, n, 4), np.float32)
      spec["num_boxes"] = jax.ShapeDtypeStruct((batch_size,), np.int32)
    return spec

  def init(self, rng, batch):
    img, txt, prompt = jax.random.split(rng, 3)
    one = self._by_caption({k: v[:1] for k, v in batch.items()})
    width = jnp.zeros((one["text"].shape[0], self.vision.width))
    params = {
        "img": self.vision.init(img, one["image"], prompt=width, box=one.get("box"),
                                is_global=one.get("is_global"), tiles=self._tiles(one))["params"],
        "txt": self.text.init(txt, one["text"])["params"],
        "prompt_proj": self.prompt.init(prompt, jnp.zeros((1, self.text.out_dim)))["params"],
        "t": jnp.full((1,), np.log(self.config.temperature_init), jnp.float32),
        "b": jnp.full((1,), self.config.bias_init, jnp.float32),
    }
    if c := self.config.surprise:
      params |= _ps3_surprise.init(c, jax.random.fold_in(rng, 3), self.vision)
    return params

  def loss(self, params, batch, rng, train: bool):
    del rng, train  # Nothing here is random.
    _towers.check_image(batch["image"], self._train_side)
    if self.config.surprise:
      return _ps3_surprise.loss(self, params, batch)
    batch = self._by_caption(batch)
    ztxt, prompt = self._read(params, batch)
    pooled, out = self.vision.apply(
        {"params": params["img"]}, batch["image"], prompt=prompt, box=batch["box"],
        is_global=batch["is_global"], tiles=self._tiles(batch))
    contrast, metrics = contrastive.contrastive_loss(
        selection_head.l2_normalize(pooled), ztxt, jnp.exp(params["t"])[0], params["b"][0],
        self.config.contrast)
    size = (self.image_size, self.image_size)
    regions = dict(
        box=batch["box"], is_global=batch["is_global"], image_hw=size,
        grids=self.vision.grids(size), boxes=batch.get("boxes"), num_boxes=batch.get("num_boxes"))
    where, terms = selection_loss.selection_loss(
        out["topdown"]["score"], out["bottomup"]["score"], form=self.config.selection_loss,
        **regions)
    if self.vision.look_policy:
      later, more = selection_loss.look_loss(
          out["later"]["topdown"], out["later"]["bottomup"], out["first_look"], **regions)
      where, terms = where + later, terms | more
    total = contrast + self.config.selection_weight * where
    return total, metrics | terms | {"loss_contrastive": contrast, "loss_selection": where}

  def after_update(self, params, step):
    del step
    return _towers.clamp_temperature(params)

  def embed_text(self, params, batch):
    """(b, d)."""
    return self._read(params, batch)[0]

  def embed_image(self, params, batch):
    """(b, d): the low-resolution pass of the whole image, pooled."""
    low = self.vision.apply({"params": params["img"]}, batch["image"], method="low")
    return selection_head.l2_normalize(low["pooled"])

  def embed_region(self, params, batch, selection: str = "topdown", num_looks: int = 1,
                   only_first_n_scales: int | None = None):
    """What looks at a region give, with one of `SELECTIONS` to choose the patches.

    Args:
      params: the task's.
      batch: a batch of regions.
      selection: how patches are chosen.
      num_looks: how often; 0 pools the tokens on the box of the low-resolution pass.
      only_first_n_scales: how many of the high-resolution scales to look at; None for all.

    Returns:
      zimg, ztxt (b, d); recall (b,), the share of the high-resolution tokens on the box that were
      selected, and budget_share (b,), the share of all of them that were, both of the scales that
      are looked at, and neither without looks.
    """
    if selection not in SELECTIONS:
      raise ValueError(f"selection={selection!r}: expected one of {', '.join(SELECTIONS)}")
    ztxt, prompt = self._read(params, batch)
    b = batch["image"].shape[0]
    size = (self.image_size, self.image_size)
    grids = self.vision.grids(size)
    if not num_looks:
      low = self.vision.apply({"params": params["img"]}, batch["image"], method="low")
      hits = geometry.hit_map(batch["box"], size, self.vision.cells).reshape(b, -1)
      tokens = low["last"][-1]
      pooled = self.vision.apply({"params": params["img"]}, tokens, hits, method="pool_high")
      return {"zimg": selection_head.l2_normalize(pooled), "ztxt": ztxt}
    scores = None
    if selection == "random":
      # One key for each region: the choice does not depend on the batch it comes in.
      keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch["index"])
      cells = self.vision.cells
      scores = jax.vmap(lambda k: jax.random.uniform(k, cells))(keys)
    out = self.vision.apply(
        {"params": params["img"]}, batch["image"],
        prompt=prompt if selection == "topdown" else None,
        box=batch["box"] if selection == "gt" else None,
        scores=scores, num_looks=num_looks, only_first_n_scales=only_first_n_scales,
        method="encode_image")
    per_scale = [geometry.hits_at(batch["box"], size, grid, index)
                 for grid, index in zip(grids, out["index"])]
    hits = jnp.concatenate(per_scale, axis=1)
    seen = grids[:only_first_n_scales]
    found = sum(h.sum(1) for h in per_scale[:len(seen)])
    taken = sum(h.shape[1] for h in per_scale[:len(seen)])
    wanted = sum(geometry.hit_map(batch["box"], size, grid).sum((1, 2)) for grid in seen)
    pooled = self.vision.apply(
        {"params": params["img"]}, out["last_hidden"][:, -hits.shape[1]:], hits,
        method="pool_high")
    total = sum(y * x for y, x in seen)
    return {
        "zimg": selection_head.l2_normalize(pooled), "ztxt": ztxt,
        "recall": found / jnp.maximum(wanted, 1),
        "budget_share": jnp.full((b,), taken / total),
    }

  def surprise(self, params, batch):
    """(b, gy, gx): how badly the low-resolution view foretells the detail of each cell."""
    found, _ = _ps3_surprise.surprise_of(self.config.surprise, params, batch["image"], self.vision)
    return found

  def encode(self, params, batch, **kwargs):
    """Features, scores and selection of images, prompted by `batch["text"]` if it is there.

    Keyword arguments are those of `PS3Vision.encode_image` (looks, budgets, scores). Added to what
    it returns: `text`, the normalised embedding of the prompt (b, d), and `score_bottomup` and
    `score_topdown`, selection probabilities (b, gy, gx), or (b, s, gy, gx) with a map for each
    scale; those of the prompt only if there is one.
    """
    text, prompt = self._read(params, batch) if "text" in batch else (None, None)
    out = self.vision.apply(
        {"params": params["img"]}, batch["image"], prompt=prompt, method="encode_image", **kwargs)
    out |= {"score_bottomup": jax.nn.sigmoid(out["bottomup_score"])}
    if prompt is None:
      return out
    return out | {"text": text, "score_topdown": jax.nn.sigmoid(out["score"])}

  def _by_caption(self, batch):
    return _towers.by_caption(batch, self.config.captions_per_image)

  @property
  def _train_side(self) -> int:
    """Side in pixels of the images of a training batch."""
    return self.config.view_size if self.config.tiles else self.image_size

  def _tiles(self, batch):
    return (batch["tiles"], batch["tile_at"]) if self.config.tiles else None

  def _read(self, params, batch):
    """Normalised text embedding and the prompt made of it, both (b, d)."""
    z, _ = self.text.apply({"params": params["txt"]}, batch["text"])
    z = selection_head.l2_normalize(z)
    return z, self.prompt.apply({"params": params["prompt_proj"]}, z)


