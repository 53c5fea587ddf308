"""Masked modelling over several fixations: see a little, predict what the next look will show.

Images are pyramids; a fixation shows n x n tokens of each scale around a point of gaze. After each
look the model predicts the tokens that the next look shows anew (or, with `predict="rest"`, after
the last one all that is left). Where to look is drawn by a policy, which may be learned: a small
head foretells the error of the predictions from the coarsest scale, and the gaze goes where that
is large. Scanpaths are functions of the seed, the step and the sample's place in the global batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, patches, typed
from big_vision_ext.models import fixations, resample, vit
from big_vision_ext.objectives import glimpses, masks, scanpaths
from big_vision_ext.tasks import _fixation_config, _fixation_targets, _teacher, _towers
from big_vision_ext.tasks._fixation_config import Config


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(Config, model_config, "config.model")
  return Task(config, _towers.image_size(config.image))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring. `image_size` is in pixels, square."""

  config: Config
  image_size: int

  def __post_init__(self):
    set_field = lambda name, value: object.__setattr__(self, name, value)
    c = self.config
    image = {"max_looks": c.looks} | _towers.plain(c.image)
    vision = vit.build(fixations.FixationModel, image, "config.model.image")
    if self.image_size % vision.patch_size:
      raise typed.ConfigError(
          f"config.model.image.image_size={self.image_size} is no multiple of patch_size="
          f"{vision.patch_size}")
    if c.target == "features":
      vision = vision.clone(target_dim=vision.width)
    set_field("vision", vision)
    set_field("windows", _fixation_config.windows(c, vision))
    _fixation_config.check(c, vision, self.windows)
    set_field("saliency", _fixation_config.saliency(c.saliency))
    set_field("outputs", {"image": self.embed_image, "reconstruct": self.reconstruct,
                          "looks": self.measure_looks})

  # Batches and sizes.

  @property
  def num_looks(self) -> int:
    """How many looks the outputs "image" and "looks" can take."""
    return self.config.looks

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example; those without a gradient count once."""
    count, free = self.config.looks, 0
    if self.config.policy == "surprise":
      free += sum(self._flops(t, False) for t in range(1, count))
    if self.config.target == "features":
      free += self._flops(count, False)
    return flops.train(self.forward_flops(), free)

  def forward_flops(self) -> int:
    """FLOPs of one image in training: all looks encoded, all targets predicted."""
    return self._flops(self.config.looks, True)

  def looks_cost(self, looks: int) -> tuple[int, int]:
    """Tokens that are encoded in so many looks, all told, and the FLOPs of encoding them."""
    return self._order(looks).ends[-1], self._flops(looks, False)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

  # Training.

  def init(self, rng, batch):
    image = batch["image"][:1]
    gaze = jnp.full((1, self.config.looks, 2), 0.5)
    looks = [self._look(gaze[:, t], t, masks.sample_keys(rng, 1)) for t in range(len(gaze[0]))]
    steps = self._steps(looks, gaze)
    params = self.vision.init(rng, image, looks, gaze, steps.tokens, steps.aims, steps.after)
    params = params["params"]
    if self.config.target != "features":
      return params
    return {**params, _teacher.NAME: _teacher.of(params, _fixation_targets.taught(params))}

  def after_update(self, params, step):
    """Moves the teacher, if there is one, towards what was learned."""
    return _teacher.follow(params, step, self.config.teacher, self.config.teacher_steps)

  def loss(self, params, batch, rng, train: bool):
    """See the module's docstring; metrics are the loss by look and by scale, and shares seen."""
    del train
    image = batch["image"]
    _towers.check_image(image, self.image_size)
    keys = masks.sample_keys(rng, len(image))
    gaze, looks = self.path(params, image, keys, saliency=batch.get("saliency"))
    steps = self._steps(looks, gaze)
    preds, out = self.vision.apply(
        {"params": params}, image, looks, gaze, steps.tokens, steps.aims, steps.after)
    truth = self._truth(params, image, looks, gaze, steps)
    error, scale = steps.errors(preds, truth), steps.scales()
    factor = 1.0
    if self.config.target in ("pix", "residual"):
      beta = glimpses.inverse_variance(truth.target, steps.weight, scale, len(self.vision.grids))
      factor = beta[scale]
    mean = lambda where: glimpses.weighted_mean(error, steps.weight * where, factor)
    loss = mean(1.0)
    metrics = {"loss_prediction": loss, "target_share": jnp.mean(steps.weight)}
    step = steps.number()
    for t in sorted(set(steps.after)):
      metrics[f"loss_after_{t}"] = mean(np.float32(step == t))
    for s in sorted(set(scale.tolist())):
      metrics[f"loss_scale_{s}"] = mean(np.float32(scale == s))
    seen = steps.seen(looks, self.vision.grids)
    metrics["seen_share"] = jnp.mean(seen[-1].astype(jnp.float32))
    if self.vision.surprise_hidden:
      wrong, explained = steps.surprise_loss(
          out["surprise"], error / truth.variance, self.vision.grids)
      loss += self.config.surprise_weight * wrong
      metrics |= {"loss_surprise": wrong, "surprise_explained": explained}
    return loss, metrics

  def path(self, params, image, keys, *, policy: str | None = None, looks: int | None = None,
           saliency=None):
    """Where a policy looks, and what it sees there.

    Args:
      params: the task's; "surprise" looks with them.
      image: (b, y, x, 3).
      keys: one a sample.
      policy: that of the config, if None.
      looks: how many; those of the config, if None.
      saliency: (b, y, x) maps of the policy "saliency"; the config's, if None.

    Returns:
      gaze (b, t, 2), and the tokens of each look and scale. No gradient passes.
    """
    policy, looks = policy or self.config.policy, looks or self.config.looks
    if policy != "surprise":
      if saliency is None and self.saliency is not None:
        saliency = jnp.broadcast_to(self.saliency, (len(image), *self.saliency.shape))
      gaze = scanpaths.draw(policy, keys, looks, saliency=saliency,
                            uniform_share=self.config.uniform_share)
      return gaze, [self._look(gaze[:, t], t, keys) for t in range(looks)]
    if not self.vision.surprise_hidden:
      raise ValueError("policy='surprise' needs a model with a head for it: set config.model.image."
                       "surprise_hidden.")
    grids, params = self.vision.grids, jax.lax.stop_gradient(params)
    gaze = [scanpaths.draw("uniform", keys, 1)[:, 0]]
    shown = [self._look(gaze[0], 0, keys)]
    seen = glimpses.see(glimpses.nothing(grids, len(image)), shown[0])
    for t in range(1, looks):
      _, out = self.vision.apply({"params": params}, image, shown, jnp.stack(gaze, axis=1))
      score = out["surprise"][:, -1, -1] / self.config.temperature
      # Cells of which the finest scale has been seen have no surprise left.
      free = ~glimpses.every(seen[-1], grids[0])
      gaze.append(scanpaths.following(
          scanpaths.look_keys(keys, t), score, free, self.config.uniform_share))
      shown.append(self._look(gaze[-1], t, keys))
      seen = glimpses.see(seen, shown[-1])
    return jnp.stack(gaze, axis=1), shown

  # What evaluators, encode and pictures ask for.

  def embed_image(self, params, batch, looks: int | None = None):
    """(b, d) after so many looks, at most those of the config; all rows use one scanpath's key."""
    image = batch["image"]
    self._check_looks(looks)
    keys = jnp.broadcast_to(jax.random.key(0), (len(image),))
    gaze, shown = self.path(params, image, keys, looks=looks, saliency=batch.get("saliency"))
    _, out = self.vision.apply({"params": params}, image, shown, gaze)
    if self.config.pool == "cls":
      return out["state"][:, -1]
    return jnp.concatenate([x for look in out["seen"] for x in look], axis=1).mean(axis=1)

  def reconstruct(self, params, batch, seed: int = 0):
    """Pictures of what is seen in all looks, and of what the model makes of the rest.

    Args:
      params: the task's.
      batch: with `image` (b, y, x, 3) and optionally `index` (b,), which says what scanpath a row
        gets; by default its place in the batch.
      seed: of the scanpaths.

    Returns:
      input (b, y, x, 3), 0..255, what was seen, each place as sharp as it was, grey where nothing
      was; prediction (b, y, x, 3), what was never seen at the finest scale replaced by what is
      predicted of it; hidden (b, gy, gx), 1 there; loss (b,), the mean error of those tokens;
      scanpath (b, t, 2); and, if there is a head for it, surprise (b, gy, gx), the foretold
      logarithm of the error at the finest scale.
    """
    self._check_pixels()
    image, v = batch["image"], self.vision
    gaze, looks = self.path(params, image, self._keys(batch, seed), saliency=batch.get("saliency"))
    steps = self._rest(looks, gaze)
    (pred,), out = v.apply(
        {"params": params}, image, looks, gaze, steps.tokens, steps.aims, steps.after)
    truth = self._truth(params, image, looks, gaze, steps)
    error = jnp.mean((pred - truth.target) ** 2, axis=-1)
    index = steps.tokens[0][-1]
    shown = _fixation_targets.shown(image, steps.before[0], v)
    raw = _fixation_targets.pixels(image, v, len(v.grids) - 1, None)
    filled = _fixation_targets.put(shown, index, pred * truth.scale + truth.shift, steps.weight)
    filled = jnp.where(steps.before[0][-1].reshape(len(image), -1, 1), raw, filled)
    picture = lambda x: (patches.unpatchify(x, v.grids[-1], v.patch_size)
                         * np.float32(v.std) + np.float32(v.mean)) * 255.0
    hidden = masks.hidden_map(masks.Mask(index, index, steps.weight), v.grids[-1])
    result = {"input": picture(shown), "prediction": picture(filled), "hidden": hidden,
              "loss": jnp.sum(error * steps.weight, 1) / jnp.maximum(steps.weight.sum(1), 1e-9),
              "scanpath": gaze}
    if v.surprise_hidden:
      result["surprise"] = resample.nearest(out["surprise"][:, -1, -1], v.grids[-1])
    return result

  def measure_looks(self, params, batch, policy: str | None = None, seed: int = 0):
    """What is known after each look of a policy.

    Returns:
      error (b, t), the mean error of the finest scale's tokens that were not seen so far;
      remaining (b, t), the same summed over them and divided by the number of all tokens; seen
      (b, t), the share that was seen; state (b, t, d); token (b, t, d), of each look the one in the
      middle of what it shows of the finest scale it shows; gaze (b, t, 2).
    """
    self._check_pixels()
    image = batch["image"]
    gaze, looks = self.path(params, image, self._keys(batch, seed), policy=policy,
                            saliency=batch.get("saliency"))
    total = np.prod(self.vision.grids[-1])
    out = {"error": [], "remaining": [], "seen": [], "state": []}
    for t in range(1, len(looks) + 1):
      steps = self._rest(looks[:t], gaze[:, :t])
      (pred,), encoded = self.vision.apply({"params": params}, image, looks[:t], gaze[:, :t],
                                           steps.tokens, steps.aims, steps.after)
      truth = self._truth(params, image, looks[:t], gaze[:, :t], steps)
      error = jnp.sum(jnp.mean((pred - truth.target) ** 2, axis=-1) * steps.weight, axis=1)
      left = steps.weight.sum(axis=1)
      out["error"].append(error / jnp.maximum(left, 1e-9))
      out["remaining"].append(error / total)
      out["seen"].append(1.0 - left / total)
      out["state"].append(encoded["state"][:, -1])
    finest = [[x for x in look if x.shape[1]][-1] for look in encoded["seen"]]
    out["token"] = [x[:, x.shape[1] // 2].astype(jnp.float32) for x in finest]
    return {k: jnp.stack(v, axis=1) for k, v in out.items()} | {"gaze": gaze}

  def _look(self, gaze, t, keys):
    return glimpses.retina(gaze, self.vision.grids, self.windows[t], self.config.shape, keys)

  def _steps(self, looks, gaze):
    if self.config.predict == "rest":
      return self._rest(looks, gaze)
    tokens, weights, before = glimpses.next_targets(looks, self.vision.grids)
    aims = [gaze[:, t:t + 1] for t in range(1, len(looks))]
    after = tuple(range(1, len(looks)))
    return _fixation_targets.Steps(tokens, aims, after, jnp.concatenate(weights, 1), before)

  def _rest(self, looks, gaze):
    tokens, weight, seen = glimpses.rest_targets(looks, self.vision.grids)
    # In the retinal frame each token is asked for as part of a look that would show it.
    aim = _fixation_targets.centres(
        tokens[-1], self.vision.grids[-1], max(sides[-1] for sides in self.windows))
    return _fixation_targets.Steps([tokens], [aim], (len(looks),), weight, [seen])

  def _truth(self, params, image, looks, gaze, steps):
    if self.config.target == "features":
      return _fixation_targets.features(self.vision, params, image, looks, gaze)
    parts = [_fixation_targets.truth(self.config.target, image, step, before, self.vision)
             for step, before in zip(steps.tokens, steps.before)]
    return _fixation_targets.Truth(*(jnp.concatenate(x, axis=1) for x in zip(*parts)))

  def _keys(self, batch, seed):
    index = batch.get("index", jnp.arange(len(batch["image"])))
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

  def _shapes(self, looks: int):
    """What so many looks show, as shapes for one image."""
    return jax.eval_shape(lambda: [
        self._look(jnp.zeros((1, 2)), t, masks.sample_keys(jax.random.key(0), 1))
        for t in range(self.config.looks)])[:looks]

  def _order(self, looks: int) -> fixations.Order:
    return self.vision.order(self._shapes(looks))

  def _flops(self, looks: int, predict: bool) -> int:
    v = self.vision
    shape, order, steps = self._shapes(self.config.looks), self._order(looks), []
    if predict:
      gaze = jax.ShapeDtypeStruct((1, looks, 2), np.float32)
      made = jax.eval_shape(lambda l, g: self._steps(l, g).tokens, shape, gaze)
      after = (looks,) if self.config.predict == "rest" else range(1, looks)
      steps = [(sum(i.shape[1] for i in step), order.ends[t - 1]) for step, t in zip(made, after)]
    return flops.looks(
        patches_seen=sum(i.shape[1] for look in shape[:looks] for i in look), spans=order.spans,
        steps=steps, width=v.width, depth=v.depth, mlp_dim=v.mlp_dim, patch_size=v.patch_size,
        decoder_width=v.decoder_width, decoder_depth=v.decoder_depth,
        decoder_mlp_dim=v.decoder_mlp_dim, outputs=v.target_dim or 3 * v.patch_size**2)

  def _check_looks(self, looks):
    if looks is not None and not 1 <= looks <= self.config.looks:
      raise ValueError(f"looks={looks}: this model was made for 1 to {self.config.looks} looks "
                       "(config.model.looks).")

  def _check_pixels(self):
    if self.config.target == "features":
      raise ValueError("target='features': this model predicts features and no pixels, so there is "
                       "no picture and no pixel error to measure.")
