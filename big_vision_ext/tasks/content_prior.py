"""A prior of content: what the network draws is made of what clean images are made of.

The deraining study (arXiv 2502.12600) constrains a network's output to the images of a pre-trained
generative model [S]. Its set-up could not be read; the stages here are ours [P], after CodeFormer's
description (Zhou et al. 2022):

- "autoencoder": encoder, codes and decoder learn to draw clean images, and nothing else.
- "adapt": codes and decoder stand still; the encoder learns to give for a degraded image the codes
  of the clean one. Which these are, a copy of the clean encoder says, kept in `teacher`.
- "fuse": all stands still but a skip from the encoder's to the decoder's features, of weight w.
  w = 0 is the pure prior, w = 1 lets what the prior holds back through again.
- "scratch", a control: the same network learns from pairs alone, nothing pre-trained or frozen.

Each begins with the parameters of the one before (`config.init`), and `config.optim.freeze` names
those that stand still: see `configs/derain/prior.py`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import counted, flops, typed
from big_vision_ext.models import vit, vq_autoencoder, vq_parts
from big_vision_ext.objectives import degradations, masks, vq
from big_vision_ext.tasks import _content_prior_config as settings
from big_vision_ext.tasks import _encoder, _teacher, _towers, restore

# Of the stages that train codes: running shares, and latent vectors of the last batch.
USAGE, SPARE = "usage", "spare"
CRITIC, UPDATES, EYE = "critic", "updates", "eye"


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(settings.Config, model_config, "config.model")
  return Task(config, _towers.image_size(config.image))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring. `image_size` is that of training, in pixels, square."""

  config: settings.Config
  image_size: int

  # A restored image is as large as the degraded one.
  scale = 1

  def __post_init__(self):
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    image = {k: v for k, v in _towers.plain(c.image).items() if k != "image_size"}
    net = vit.build(vq_autoencoder.VQAutoencoder, image, "config.model.image")
    set_field("net", net)
    net.check()
    settings.check(c, net, self.image_size)
    degrade = c.degrade and degradations.make(typed.plain(c.degrade), "config.model.degrade")
    if degrade and degrade.scale > 1:
      raise typed.ConfigError(f"config.model.degrade={typed.plain(c.degrade)}: a restored image is "
                              "as large as the degraded one; expected one that keeps its size")
    set_field("degrade", degrade)
    critic = c.critic and vq_parts.Critic(
        c.critic.width, c.critic.layers, net.groups, net.dtype, net.param_dtype)
    set_field("critic", critic)
    eye = c.perceptual and _encoder.make(c.perceptual.encoder, "config.model.perceptual.encoder")
    set_field("eye", eye)
    outputs = {"restore": self.restore, "reconstruct": self.reconstruct}
    if c.stage == "fuse":
      at = lambda w: lambda params, batch: self.restore_at(params, batch, w)
      outputs |= {"restore_w0": at(0.0), "restore_w50": at(0.5), "restore_w100": at(1.0)}
    set_field("outputs", outputs)

  @functools.cached_property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example, of what is trained and of what is only run."""
    encode, choose, decode = self._flops
    if self.config.stage == "adapt":
      return flops.train(encode + choose, frozen=encode)
    if self.config.stage == "fuse":
      # The gradient passes through the decoder to the skips.
      return flops.train(decode, frozen=encode + choose)
    return flops.train(encode + choose + decode)

  def forward_flops(self) -> int:
    """FLOPs of restoring one image of the size of training."""
    return sum(self._flops)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    names = ("image", "degraded") if self._pairs else ("image",)
    return {name: jax.ShapeDtypeStruct(shape, np.uint8) for name in names}

  def init(self, rng, batch):
    image = restore.to_float(batch["image"][:1])
    params = dict(self.net.init(rng, image, jnp.ones(1))["params"])
    c, net = self.config, self.net
    if c.stage in ("adapt", "fuse"):
      return {**params, _teacher.NAME: _teacher.of(params, ("encoder",))}
    if c.revive:
      params[USAGE] = jnp.zeros(net.codes)
      params[SPARE] = jnp.zeros((net.codes, net.code_width))
    if self.critic:
      params[CRITIC] = self.critic.init(jax.random.fold_in(rng, 1), image)["params"]
      params[UPDATES] = jnp.zeros(())
    if self.eye:
      params[EYE] = self.eye.init(jax.random.fold_in(rng, 2))
    return flax.core.unfreeze(params)

  def begin(self, params):
    """The encoder of clean images, as it was loaded, is what an adapted one is to agree with."""
    if self.config.stage != "adapt":
      return params
    return {**params, _teacher.NAME: _teacher.of(params, ("encoder",))}

  def loss(self, params, batch, rng, train: bool):
    del train
    _towers.check_image(batch["image"], self.image_size)
    clean = restore.to_float(batch["image"])
    k_degrade, k_own = jax.random.split(rng)
    seen = restore.to_float(restore.degraded_of(batch)) if self._pairs else clean
    if self.degrade:
      seen, _ = self.degrade(masks.sample_keys(k_degrade, len(clean)), clean)
    if self.config.stage == "adapt":
      return self._adapt_loss(params, seen, clean)
    if self.config.stage == "fuse":
      return self._fuse_loss(params, seen, clean, k_own)
    return self._autoencoder_loss(params, seen, clean, k_own)

  def after_update(self, params, step):
    """Dead codes are replaced, see `Revive`."""
    r = self.config.revive
    if not r:
      return params
    book, usage = vq.revive(params["codebook"], params[USAGE], params[SPARE],
                            step % r.steps == 0, r.threshold)
    return {**params, "codebook": book, USAGE: usage}

  def restore(self, params, batch):
    """(b, y, x, 3) float32, about 0..1: degraded images restored, with the config's w."""
    return self.restore_at(params, batch, self.config.w)

  def restore_at(self, params, batch, w):
    """As `restore`, with `w` from 0, the pure prior, to 1; a number or one of each row, (b,)."""
    return self.net.apply({"params": params}, restore.to_float(batch["image"]), w)[0]

  def reconstruct(self, params, batch):
    """(b, y, x, 3) float32: clean images through the prior, as its own encoder sees them.

    What is lost here a restoration through the pure prior will hardly give back: the floor.
    """
    latent = self._clean_latent(params, restore.to_float(batch["image"]))
    vector = self._nearest(params, latent).vector if self.net.quantize else latent
    return self._apply(params, vector, method="decode")

  def _autoencoder_loss(self, params, seen, clean, rng):
    c, net = self.config, self.net
    latent, features = self._apply(params, seen, method="encode")
    vector, terms, metrics = latent, {}, {}
    if net.quantize:
      codes = self._nearest(params, latent)
      terms["codebook"], commitment = vq.code_losses(latent, codes.vector)
      terms["commitment"] = c.beta * commitment
      shares = vq.frequencies(codes.index, net.codes)
      metrics = {"perplexity": vq.perplexity(shares), "codes_used": jnp.mean(shares > 0)}
      if c.revive:
        usage = c.revive.decay * params[USAGE] + (1 - c.revive.decay) * shares
        metrics |= {"usage_perplexity": vq.perplexity(usage), f"params/{USAGE}": usage,
                    f"params/{SPARE}": vq.spare_vectors(rng, latent, net.codes)}
      vector = vq_parts.straight_through(latent, codes.vector)
    drawn = self._apply(params, vector, features, method="draw")
    image = self._apply(params, drawn, method="paint")
    terms["pixel"] = _l1(image, clean)
    if self.eye:
      tokens = lambda x: self.eye(jax.lax.stop_gradient(params[EYE]), x, blocks=True)[1]
      terms["perceptual"] = c.perceptual.weight * _l1(tokens(image), tokens(clean))
    if self.critic:
      more, found = self._critic_terms(params, drawn, image, clean)
      terms |= more
      metrics |= found
    return sum(terms.values()), metrics | _named(terms) | {"psnr": _psnr(image, clean)}

  def _critic_terms(self, params, drawn, image, clean):
    """The image's term, through which the critic learns nothing, and the critic's own."""
    c, stop = self.config.critic, jax.lax.stop_gradient
    score = lambda critic, x: self.critic.apply({"params": critic}, x)
    judged = lambda x: -jnp.mean(score(stop(params[CRITIC]), x))
    paint = lambda layer: self._apply({**params, "to_image": layer}, stop(drawn), method="paint")
    weight = vq.balance(paint, params["to_image"], lambda x: _l1(x, clean), judged, c.largest)
    on = (params[UPDATES] >= c.start).astype(jnp.float32)
    own = vq.critic_loss(score(params[CRITIC], clean), score(params[CRITIC], stop(image)))
    terms = {"critic_image": on * c.weight * weight * judged(image), "critic": on * own}
    return terms, {"critic_weight": on * c.weight * weight,
                   f"params/{UPDATES}": params[UPDATES] + 1}

  def _adapt_loss(self, params, seen, clean):
    c, stop = self.config, jax.lax.stop_gradient
    latent, _ = self._apply(params, seen, method="encode")
    wanted = stop(self._clean_latent(params, clean))
    if not self.net.quantize:
      terms = {"feature": c.feature_weight * jnp.mean((latent - wanted) ** 2)}
      return terms["feature"], _named(terms)
    codes = self._nearest(params, wanted)
    logits = self._apply(params, latent, c.temperature, method="logits")
    terms = {
        "feature": c.feature_weight * jnp.mean((latent - stop(codes.vector)) ** 2),
        "code": c.code_weight * vq.cross_entropy(logits, codes.index),
    }
    chosen = jnp.argmax(logits, axis=-1)
    shares = vq.frequencies(chosen, self.net.codes)
    return sum(terms.values()), _named(terms) | {
        "code_accuracy": jnp.mean(chosen == codes.index), "perplexity": vq.perplexity(shares)}

  def _fuse_loss(self, params, seen, clean, rng):
    low, high = self.config.fuse_w
    keys = masks.sample_keys(rng, len(clean))
    w = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)
    image, out = self._apply(params, seen, w if low < high else jnp.full(len(clean), low))
    loss, metrics = _l1(image, clean), {"psnr": _psnr(image, clean)}
    if self.net.quantize:
      metrics["perplexity"] = vq.perplexity(vq.frequencies(out["index"], self.net.codes))
    return loss, _named({"pixel": loss}) | metrics

  def _clean_latent(self, params, clean):
    """What the encoder of clean images gives: before it is adapted, the encoder itself."""
    teacher = params.get(_teacher.NAME, {})
    return self._apply({**params, **teacher}, clean, method="encode")[0]

  def _nearest(self, params, latent):
    return self._apply(params, latent, method="nearest")

  def _apply(self, params, *args, method=None):
    return self.net.apply({"params": params}, *args, method=method)

  @property
  def _pairs(self) -> bool:
    """Whether degraded pictures come with the batch."""
    return self.degrade is None and self.config.stage != "autoencoder"

  @functools.cached_property
  def _flops(self):
    """FLOPs of encoding one image, of choosing its codes, and of decoding them."""
    net, side = self.net, self.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(lambda: self.net.init(
        jax.random.key(0), jnp.zeros(image.shape), jnp.ones(1))["params"])
    encode = lambda p, x: self._apply(p, x, method="encode")
    latent, features = jax.eval_shape(encode, params, image)
    parts = [(encode, (image,)),
             (lambda p, z: self._apply(p, z, method="choose"), (latent,)),
             (lambda p, z, f: self._apply(p, z, f, jnp.ones(1), method="decode"),
              (latent, features))]
    return [counted.forward(fn, params, *args) if net.quantize or i != 1 else 0
            for i, (fn, args) in enumerate(parts)]


def _named(terms):
  return {f"loss_{name}": value for name, value in terms.items()}


def _l1(image, target):
  return jnp.mean(jnp.abs(image - target))


def _psnr(image, target):
  """Of the batch, in dB, float: the mean over images of what evaluators measure is near it."""
  errors = jnp.mean((jnp.clip(image, 0.0, 1.0) - target) ** 2, axis=(1, 2, 3))
  return -10.0 * jnp.mean(jnp.log10(jnp.maximum(errors, 1e-10)))
