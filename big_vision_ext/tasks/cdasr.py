"""CDASR: super-resolution steered by what a frozen encoder sees, that adapts from a few pictures.

Lu et al. 2025 (arXiv 2505.12391). A restoration network makes features of the low-resolution
picture, `models.cdasr.Alignment` aligns them with the encoder's vector of the same picture, and the
network enlarges them. The loss has terms of pixels, of perception and of semantics [S]; that these
are L1 of the encoder's tokens in its middle and one less the cosine of its vectors is ours [P].
With `meta`, it is that after steps of adaptation to tasks of a domain each [P].

Low-resolution pictures are made on the device, by MATLAB's bicubic reduction rounded to 8 bits. The
high-resolution picture is in the loss alone: what steers is the low-resolution one, enlarged to the
encoder's size, as at test time there is no other. Rows of a batch with `meta` are tasks one after
the other, `support` and then `query` rows each (`input.group` = their sum).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import counted, flops, sharding, typed
from big_vision_ext.models import attention, cdasr, restoration
from big_vision_ext.objectives import bicubic, masks
from big_vision_ext.objectives import meta as meta_lib
from big_vision_ext.tasks import _encoder, _towers, restore

# What adapts by default: what the paper adds, and the convolution that paints the picture [P].
_ADAPTED = {"adapter": ("align/.*", "net/last/.*"), "all": ("align/.*", "net/.*")}


@dataclasses.dataclass(frozen=True)
class Align:
  """`config.model.align`: fields of `models.cdasr.Alignment`."""

  hidden: int = 1024
  semantic: int = 512
  width: int = 64
  spatial: Literal["reshape", "tile", "film"] = "reshape"
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Weights:
  """`config.model.weights`: of the terms of the loss. That there are these three is the paper's
  [S]; how much they weigh is not known, 0.01 each a start [P], 0 for the highest PSNR.

  Attributes:
    pixel: mean absolute difference of pixels in [0, 1].
    perceptual: of the encoder's tokens in its middle.
    semantic: one less the cosine of the encoder's vectors.
  """

  pixel: float = 1.0
  perceptual: float = 0.0
  semantic: float = 0.0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value >= 0:
        raise typed.ConfigError(f"config.model.weights.{name}={value}: expected at least 0")


@dataclasses.dataclass(frozen=True)
class Meta:
  """`config.model.meta`: adaptation inside of the loss; MZSR's numbers, first order [P].

  Attributes:
    inner_steps: K, steps of plain SGD on the support rows.
    inner_rate: alpha of these.
    tasks: T, in a batch; each is of one domain.
    support, query: rows of a task.
    order: 1 takes the gradients of the steps as constants, 2 differentiates them.
    adapted: "adapter", the alignment and the last convolution, or "all" but the encoder.
    anneal_steps: outer steps until almost only the last inner step counts.
    floor: what each of the others ends with, times K.
    parallel: "vmap" adapts to the tasks of a device side by side, "loop" one after the other;
      "auto" loops on CPUs, whose convolutions of several kernels at once are many times slower.
  """

  inner_steps: int = 5
  inner_rate: float = 1e-2
  tasks: int = 4
  support: int = 4
  query: int = 4
  order: Literal[1, 2] = 1
  adapted: Literal["adapter", "all"] = "adapter"
  anneal_steps: int = 3333
  floor: float = 0.03
  parallel: Literal["auto", "vmap", "loop"] = "auto"

  def __post_init__(self):
    for name in ("inner_steps", "tasks", "support", "query"):
      if getattr(self, name) < 1:
        raise typed.ConfigError(
            f"config.model.meta.{name}={getattr(self, name)}: expected at least 1")
    if not self.inner_rate >= 0 or self.anneal_steps < 0 or not 0 <= self.floor <= 1:
      raise typed.ConfigError(
          f"config.model.meta: inner_rate={self.inner_rate}, anneal_steps={self.anneal_steps}, "
          f"floor={self.floor}: expected at least 0, and a floor of at most 1")


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "cdasr".

  Attributes:
    net: a network of `models.restoration` and its scale; see `tasks.restore.NetConfig`.
    image_size: side of the high-resolution training pictures, as `input.image_size`.
    encoder: the frozen tower; None where nothing needs one.
    condition: what steers: the "encoder"'s vector of the picture; or, as controls with as
      many parameters, the vector of another picture of the batch ("shuffled", never its own) or
      the same for all ("constant"); or "none", the network alone.
    align: sizes of the alignment.
    weights: of the terms of the loss.
    meta: adaptation inside of the loss; None trains plainly.
    augment: turn and mirror training pictures, in all eight ways.
  """

  net: restore.NetConfig
  image_size: int
  encoder: _encoder.Spec | None = None
  condition: Literal["encoder", "shuffled", "constant", "none"] = "encoder"
  align: Align = Align()
  weights: Weights = Weights()
  meta: Meta | None = None
  augment: bool = True


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  return Task(typed.build(Config, model_config, "config.model"))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring.

  Attributes set here: `net`, `scale`, `align` and `encoder` (None where there is none).
  """

  config: Config

  def __post_init__(self):
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    if c.net.scale < 2:
      raise typed.ConfigError(f"config.model.net.scale={c.net.scale}: expected at least 2, how "
                              "many times larger pictures become")
    try:
      set_field("net", restoration.build(
          c.net.name, scale=c.net.scale, **_towers.plain(c.net.fields)))
    except ValueError as error:
      raise typed.ConfigError(f"config.model.net: {error}") from error
    set_field("scale", c.net.scale)
    unit = self.scale * self.net.multiple
    if c.image_size < unit or c.image_size % unit:
      raise typed.ConfigError(
          f"config.model.image_size={c.image_size}: expected a multiple of {unit}, scale times "
          f"what sides of {c.net.name!r} divide by")
    needs = [name for name in ("perceptual", "semantic") if getattr(c.weights, name)]
    needs = [f"weights.{n}={getattr(c.weights, n)}" for n in needs]
    needs += [f"condition={c.condition!r}"] * (c.condition != "none")
    if c.encoder is None and needs:
      raise typed.ConfigError(f"config.model.encoder=None with {needs[0]}: expected a tower")
    align = encoder = None
    if c.encoder is not None:
      encoder = _encoder.make(c.encoder, "config.model.encoder")
    if c.condition != "none":
      align = cdasr.Alignment(**dataclasses.asdict(c.align))
    set_field("align", align)
    set_field("encoder", encoder)
    set_field("image_size", c.image_size)
    set_field("outputs", {"restore": self.restore, "condition": self.condition})
    # Now, not in the middle of a trace.
    jax.eval_shape(lambda: self.init(jax.random.key(0), {}))

  @property
  def adapted(self) -> tuple[str, ...]:
    """Patterns of what adapts, by `meta` or, without it, by default."""
    return self.patterns(self.config.meta.adapted if self.config.meta else "adapter")

  def patterns(self, adapted: str) -> tuple[str, ...]:
    """Patterns of the parameters that "adapter" or "all" stands for; raises ValueError for more."""
    if adapted not in _ADAPTED:
      raise ValueError(f"adapted={adapted!r}: expected one of {', '.join(_ADAPTED)}")
    patterns = _ADAPTED[adapted]
    return patterns if self.align is not None else patterns[1:]

  @functools.cached_property
  def flops_per_example(self) -> int:
    """Model FLOPs of one row: three times the forward pass, and the encoder's; with `meta`
    K times, as support and query rows are both gone through in each step, first order."""
    c, m = self.config, self.config.meta
    frozen = 0
    if self.encoder is not None and c.condition in ("encoder", "shuffled"):
      frozen = self._encoder_flops()
    train = flops.train(self.forward_flops() - frozen)
    if c.weights.perceptual or c.weights.semantic:
      # The target's forward, and forward and backward to the pixels.
      train, frozen = train + 2 * self._encoder_flops(), frozen + 2 * self._encoder_flops()
    if m is None:
      return train + frozen
    return round(m.inner_steps * train) + frozen

  def forward_flops(self) -> int:
    """FLOPs of restoring one training picture, its vector included."""
    side = self.image_size // self.scale
    low = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(lambda: self.init(jax.random.key(0), {}))
    steered = lambda p, x: self._restored(p, x, None if self.align is None else self.vectors(p, x))
    return counted.forward(steered, params, low)

  def _encoder_flops(self) -> int:
    image = jax.ShapeDtypeStruct((1, *(self.encoder.size,) * 2, 3), jnp.float32)
    params = jax.eval_shape(lambda: self.encoder.init(jax.random.key(0)))
    return counted.forward(lambda p, x: self.encoder(p, x)[0], params, image)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

  def init(self, rng, batch):
    """Random values; the encoder's are to come from weights (`config.init`)."""
    del batch
    side = self.image_size // self.scale
    low = jnp.zeros((1, side, side, 3))
    keys = jax.random.split(rng, 3)
    params = {"net": self.net.init(keys[0], low)["params"]}
    if self.encoder is not None:
      params["encoder"] = self.encoder.init(keys[2])
    if self.align is not None:
      features = jax.eval_shape(
          lambda: self.net.init_with_output(keys[0], low)[0][1]["features"])
      params["align"] = self.align.init(
          keys[1], jnp.zeros((1, self.encoder.width)), jnp.zeros(features.shape))["params"]
    if self.config.meta is not None:
      params["meta_step"] = jnp.zeros((), jnp.float32)
    return params

  def after_update(self, params, step):
    """Outer steps are counted among the frozen parameters: by them queries are weighed."""
    if self.config.meta is None:
      return params
    return {**params, "meta_step": (step + 1).astype(jnp.float32)}

  def loss(self, params, batch, rng, train: bool):
    """The weighted sum of terms; with `meta` after adaptation, and how much that helped."""
    _towers.check_image(batch["image"], self.image_size)
    self._check_rows(len(batch["image"]))
    high = restore.to_float(batch["image"])
    if train and self.config.augment:
      keys = masks.sample_keys(jax.random.fold_in(rng, 1), len(high))
      high = jax.vmap(restore.turned)(keys, high)
    rows = self.rows(params, high, jax.random.fold_in(rng, 2))
    if self.config.meta is None:
      return self.loss_of(params, rows)
    return self._meta_loss(params, rows)

  def rows(self, params, high, rng=None):
    """What the loss needs of pictures and what no step of adaptation changes.

    Args:
      params: of the encoder.
      high: (b, y, x, 3), RGB in [0, 1].
      rng: of the shuffling control, which needs it.

    Returns:
      `low` (b, y / scale, x / scale, 3) and `high`; `vector` (b, d) that steers; and `goal_vector`,
      `goal_tokens` of the high-resolution pictures, if the loss has terms of them.
    """
    low = bicubic.quantize(bicubic.downsample(high, self.scale))
    return self.rows_of_pairs(params, low, high, rng)

  def rows_of_pairs(self, params, low, high, rng=None):
    """The same of pictures whose low-resolution ones are given."""
    out = {"low": low, "high": high}
    if self.align is not None:
      out["vector"] = self.condition(params, {"image": low}, rng)
    if self.config.weights.perceptual or self.config.weights.semantic:
      vector, tokens = self.encoder(
          params["encoder"], high, blocks=bool(self.config.weights.perceptual))
      out |= {"goal_vector": vector} | ({} if tokens is None else {"goal_tokens": tokens})
    return jax.lax.stop_gradient(out)

  def loss_of(self, params, rows):
    """The loss of rows of `rows`, and its terms."""
    w = self.config.weights
    found = self._restored(params, rows["low"], rows.get("vector"))
    terms = {"pixel": jnp.mean(jnp.abs(found - rows["high"]))}
    if w.perceptual or w.semantic:
      frozen = jax.lax.stop_gradient(params["encoder"])
      vector, tokens = self.encoder(frozen, found, blocks=bool(w.perceptual))
      if w.perceptual:
        terms["perceptual"] = jnp.mean(jnp.abs(tokens - rows["goal_tokens"]))
      if w.semantic:
        terms["semantic"] = 1 - jnp.mean(jnp.sum(vector * rows["goal_vector"], axis=-1))
    return sum(getattr(w, name) * x for name, x in terms.items()), terms

  def _meta_loss(self, params, rows):
    """Mean over tasks of the weighted losses of queries along the inner steps."""
    m = self.config.meta
    rows = jax.tree.map(lambda x: x.reshape(m.tasks, m.support + m.query, *x.shape[1:]), rows)

    loop = m.parallel == "loop" or m.parallel == "auto" and attention.platform() == "cpu"

    def one(params, task):
      phi, rest = meta_lib.split(params, self.adapted, "config.model.meta.adapted")
      part = lambda rows: lambda phi: self.loss_of(meta_lib.merge(phi, rest), rows)[0]
      return meta_lib.episode(
          part(jax.tree.map(lambda x: x[:m.support], task)),
          part(jax.tree.map(lambda x: x[m.support:], task)),
          phi, steps=m.inner_steps, rate=m.inner_rate, order=m.order, unroll=loop)

    try:
      losses = meta_lib.over_tasks(one, params, rows, loop)
    except sharding.ShardingError as error:
      raise typed.ConfigError(f"config.model.meta.tasks={m.tasks}: every device adapts to whole "
                              f"tasks, and {error}; expected a multiple of that") from error
    support, query = jax.tree.map(lambda x: x.mean(axis=0), losses)
    weights = meta_lib.query_weights(
        jax.lax.stop_gradient(params["meta_step"]), m.inner_steps, m.anneal_steps, m.floor)
    return jnp.sum(weights * query), {
        "support_before": support[0], "query_first": query[0], "query_last": query[-1]}

  def _check_rows(self, rows: int) -> None:
    m = self.config.meta
    if m and rows != m.tasks * (m.support + m.query):
      raise typed.ConfigError(
          f"a batch of {rows} rows: expected config.batch_size={m.tasks * (m.support + m.query)}, "
          f"config.model.meta.tasks={m.tasks} times {m.support} support and {m.query} query rows "
          "(and optim.accum_steps=1)")

  def condition(self, params, batch, rng=None):
    """(b, d): the vectors that steer, of low-resolution pictures `image`, uint8 or in [0, 1].

    For the control "shuffled", those of other pictures of the batch, by `rng`: none has its own.

    Raises:
      ValueError: nothing steers this model; or it is that control, and there is no `rng` or no
        other picture.
    """
    if self.align is None:
      raise ValueError("config.model.condition='none': nothing steers this model")
    vector = self.vectors(params, restore.to_float(batch["image"]))
    if self.config.condition != "shuffled":
      return vector
    if rng is None or len(vector) < 2:
      raise ValueError(
          f"config.model.condition='shuffled' with {len(vector)} picture(s)"
          f"{' and no seed' if rng is None else ''}: this control steers by other pictures of a "
          "batch, to be trained and measured as such; expected condition='encoder' to restore or "
          "adapt to pictures of one's own")
    order = jax.random.permutation(rng, len(vector))
    # Each has the vector of the one before it in a random circle of all.
    return vector[jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))]

  def vectors(self, params, low):
    """(b, d): the pictures' own vectors, of `low` in [0, 1]; for "constant", the same for all."""
    if self.config.condition == "constant":
      width = self.encoder.width
      return jnp.full((len(low), width), width**-0.5, jnp.float32)
    return self.encoder(jax.lax.stop_gradient(params["encoder"]), low)[0]

  def restore(self, params, batch):
    """(b, y * scale, x * scale, 3), float32, not clipped, of `image` (b, y, x, 3).

    `vector` (b, d) in the batch steers in place of the picture's own: that of the whole, where
    pictures are parts of one.
    """
    low = restore.to_float(batch["image"])
    vector = batch.get("vector")
    if vector is None and self.align is not None:
      vector = self.condition(params, batch)
    return self._restored(params, low, vector)

  def _restored(self, params, low, vector):
    net = {"params": params["net"]}
    features = self.net.apply(net, low, method="features")
    if self.align is not None:
      features, _ = self.align.apply({"params": params["align"]}, vector, features)
    return self.net.apply(net, features, low, method="reconstruct")
