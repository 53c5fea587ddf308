"""Restoration: undo what was done to pictures, one network or a population of seeds at once.

Clean crops come from the input and are degraded on the device, anew at every step (rain, noise,
...: `objectives.degradations`), or the input ships pairs. The study of deraining (arXiv 2502.12600)
compares runs over seeds: here they are one run, whose parameters and keys have a leading axis of
members. What the members share is the stream of clean crops; what each has of its own, by its seed,
is the initialisation, the flips and turns, the degradation, and, with `share` below 1, which rows
of a batch it trains on. A member's update is that of a run with its seed alone: the objective is
the sum of the members' losses, and nothing in the optimiser may mix them (`population`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from big_vision_ext.core import counted, flops, typed
from big_vision_ext.models import attention, restoration
from big_vision_ext.objectives import bicubic, degradations, masks
from big_vision_ext.tasks import _towers

# The logical axis of a population; `core.sharding` cuts it over the mesh axis `tensor`.
MEMBERS = "members"
_CHARBONNIER = 1e-3


@dataclasses.dataclass(frozen=True)
class NetConfig:
  """Which network.

  Attributes:
    name: one of `models.restoration`.
    scale: how much larger the output is than the input; 1 for deraining. To train above 1
      `degrade` must make pictures as much smaller (kind "bicubic"); the task "cdasr" enlarges by
      more than one domain.
    fields: of that network.
  """

  name: str
  scale: int = 1
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "restore".

  Attributes:
    net: see `NetConfig`.
    image_size: side in pixels of the clean training crops.
    degrade: of `objectives.degradations.make`; None where batches carry pairs (`input.pairs`).
    loss: "l1", "l2" or "charbonnier", sqrt(d^2 + 1e-6), of the unclipped output.
    seeds: one, or one for each member of a population.
    share: each member trains on this share of a batch's rows, drawn by its own key, so that members
      see different crops: batches are pools then.
    augment: members flip and turn their crops, before degradation, as their keys say.
    quantize_input: degraded pictures are rounded to 8 bits, as if they had been stored.
    population: "vmap" computes the members side by side, "loop" one after the other in one program;
      "auto" loops on CPUs, whose convolutions of several members at once are many times slower.
  """

  net: dict[str, Any]
  image_size: int = 128
  degrade: dict[str, Any] | None = None
  loss: Literal["l1", "l2", "charbonnier"] = "l1"
  seeds: Sequence[int] = (0,)
  share: float = 1.0
  augment: bool = True
  quantize_input: bool = True
  population: Literal["auto", "vmap", "loop"] = "auto"


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  return Task(typed.build(Config, model_config, "config.model"))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring.

  With one seed the parameters are the network's own; with several, every one has a leading axis.
  """

  config: Config

  def __post_init__(self):
    set_field = lambda name, value: object.__setattr__(self, name, value)
    c = self.config
    spec = typed.build(NetConfig, c.net, "config.model.net")
    set_field("spec", spec)
    set_field("net", restoration.build(spec.name, scale=spec.scale, **_towers.plain(spec.fields)))
    set_field("degradation", None if c.degrade is None else degradations.make(c.degrade))
    set_field("outputs", {"restore": self.restore, "restore_all": self.restore_all})
    self._check()

  def _check(self) -> None:
    c = self.config
    seeds = list(c.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
      raise typed.ConfigError(f"config.model.seeds={seeds}: expected different whole numbers of at "
                              "least 0, one for each member")
    if not 0 < c.share <= 1:
      raise typed.ConfigError(f"config.model.share={c.share}: expected above 0 and up to 1")
    unit = self.spec.scale * getattr(self.net, "multiple", 1)
    if c.image_size % unit or c.image_size < unit:
      raise typed.ConfigError(
          f"config.model.image_size={c.image_size}: {self.spec.name} at scale {self.spec.scale} "
          f"needs a multiple of {unit}")
    if self.degradation is not None:
      self._check_scale(f"{c.degrade} makes", self.degradation.scale)

  def _check_scale(self, made: str, smaller: int) -> None:
    if smaller != self.spec.scale:
      raise typed.ConfigError(
          f"config.model.net.scale={self.spec.scale}: {made} pictures {smaller} times smaller; "
          f"expected net.scale={smaller}, or degrade=dict(kind='bicubic', scale=...)")

  @property
  def members(self) -> int:
    """How many networks there are."""
    return len(self.config.seeds)

  @functools.cached_property
  def flops_per_example(self) -> int:
    """Model FLOPs of one row of a batch, of all members that train on it."""
    return round(self.members * self.config.share * flops.train(self.forward_flops()))

  def forward_flops(self) -> int:
    """FLOPs of one member restoring one training crop."""
    side = self.config.image_size // self.spec.scale
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(lambda: self._init_one(jax.random.key(0), 0))
    return counted.forward(lambda p, x: self._apply(p, x), params, image)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    side = self.config.image_size
    names = ("image", "degraded") if self.degradation is None else ("image",)
    return {k: jax.ShapeDtypeStruct((batch_size, side, side, 3), np.uint8) for k in names}

  def init(self, rng, batch):
    del batch
    seeds = jnp.asarray(self.config.seeds, jnp.uint32)
    if self.members == 1:
      return self._init_one(rng, seeds[0])
    stacked = jax.vmap(lambda seed: self._init_one(rng, seed))(seeds)
    return jax.tree.map(_with_member_axis, stacked, is_leaf=_is_box)

  def loss(self, params, batch, rng, train: bool):
    """The sum of the members' losses, whose gradient is each member's own.

    Metrics: `member_loss`, their mean, `member_spread`, their standard deviation where there are
    several, and `psnr` of the outputs, dB, mean over pictures and members.
    """
    if self.degradation is None:
      # Only here: a network that enlarges may restore without being trained.
      self._check_scale("pairs have", 1)
    keys = jax.vmap(lambda seed: jax.random.fold_in(rng, seed))(
      jnp.asarray(self.config.seeds, jnp.uint32))
    draw = lambda key: self.views(batch, key, train)
    # A loop of the program itself, compiled once; networks are not in it, whose convolutions CPUs
    # compute slowly there.
    views = jax.lax.map(draw, keys) if self._loops and self.members > 1 else jax.vmap(draw)(keys)
    losses, psnr = self._each(lambda p, seen: self.member_loss(p, *seen, train), params, views)
    metrics = {"member_loss": losses.mean(), "psnr": psnr.mean()}
    if self.members > 1:
      metrics["member_spread"] = losses.std(ddof=1)
    return losses.sum(), metrics

  def member_loss(self, params, clean, degraded, train: bool):
    """One member's loss and the mean PSNR of its outputs, by its parameters and what it sees."""
    out = self._apply(params, degraded, train)
    error = out.astype(jnp.float32) - clean
    psnr = -10.0 * jnp.log10(jnp.maximum(jnp.mean(error**2, axis=(1, 2, 3)), 1e-10)).mean()
    if self.config.loss == "l1":
      return jnp.abs(error).mean(), psnr
    if self.config.loss == "l2":
      return (error**2).mean(), psnr
    return jnp.sqrt(error**2 + _CHARBONNIER**2).mean(), psnr

  def views(self, batch, key: Key[Array, ""], train: bool):
    """What a member sees of a batch: clean and degraded pictures in [0, 1].

    A row's flips, turns and degradation are a function of the key and of the row's place in the
    batch. Degradations are drawn after the turns: rain falls as its range says.
    """
    image, pair = jnp.asarray(batch["image"]), None
    if self.degradation is None:
      pair = jnp.asarray(degraded_of(batch))
    k_rows, k_turn, k_degrade = (jax.random.fold_in(key, i) for i in range(3))
    if train and self.config.share < 1:
      count = max(1, round(self.config.share * len(image)))
      rows = jnp.sort(jax.random.permutation(k_rows, len(image))[:count])
      image, pair = image[rows], None if pair is None else pair[rows]
    clean, pair = to_float(image), None if pair is None else to_float(pair)
    if train and self.config.augment:
      turns = masks.sample_keys(k_turn, len(clean))
      clean = jax.vmap(turned)(turns, clean)
      pair = None if pair is None else jax.vmap(turned)(turns, pair)
    if pair is None:
      pair, _ = self.degrade(masks.sample_keys(k_degrade, len(clean)), clean)
    return clean, pair

  def degrade(self, keys: Key[Array, "b"], clean: Float[Array, "b y x 3"]):
    """(degraded, aux) of the config's degradation, rounded if the config says so."""
    degraded, aux = self.degradation(keys, clean)
    return (bicubic.quantize(degraded) if self.config.quantize_input else degraded), aux

  def restore(self, params, batch, member: int = 0) -> Float[Array, "b Y X 3"]:
    """Restored pictures of one member, in [0, 1] but not clipped.

    Args:
      params: the task's.
      batch: `image` (b, y, x, 3), degraded: uint8, or floats in [0, 1].
      member: which, by its place in `seeds`.

    Raises:
      ValueError: there is no such member.
    """
    return self._apply(self.member(params, member), to_float(batch["image"]))

  def restore_all(self, params, batch) -> Float[Array, "k b Y X 3"]:
    """As `restore`, of all members, also where there is only one."""
    image = to_float(batch["image"])
    return self._each(lambda p, _: self._apply(p, image), params, ())

  def member(self, params, index: int) -> Any:
    """The parameters of one member, as of a run of its seed alone."""
    if not 0 <= index < self.members:
      raise ValueError(f"member={index}: there are {self.members}, of the seeds "
                       f"{', '.join(map(str, self.config.seeds))}; expected 0 to "
                       f"{self.members - 1}")
    return params if self.members == 1 else jax.tree.map(lambda p: p[index], params)

  def _init_one(self, rng, seed):
    side = 2 * getattr(self.net, "multiple", 1)
    key = jax.random.fold_in(rng, seed)
    return self.net.init(key, jnp.zeros((1, side, side, 3), jnp.float32))["params"]

  def _apply(self, params, image, train: bool = False):
    return self.net.apply({"params": params}, image, train=train)[0].astype(jnp.float32)

  @property
  def _loops(self) -> bool:
    how = self.config.population
    return attention.platform() == "cpu" if how == "auto" else how == "loop"

  def _each(self, fn, params, values):
    """`fn(a member's parameters, its values)` of all members, results stacked."""
    if self.members > 1 and not self._loops:
      return jax.vmap(fn)(params, values)
    found = [fn(self.member(params, i), jax.tree.map(lambda v, i=i: v[i], values))
             for i in range(self.members)]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *found)


def degraded_of(batch):
  """The degraded pictures that came with a batch; raises ValueError if there are none."""
  if "degraded" not in batch:
    raise ValueError("the batch has no `degraded` pictures; set input.pairs=True, or "
                     "config.model.degrade to make them")
  return batch["degraded"]


def to_float(image) -> Float[Array, "b y x 3"]:
  """uint8 pictures as floats in [0, 1]; floats as they are."""
  if jnp.issubdtype(image.dtype, jnp.integer):
    return image.astype(jnp.float32) / 255.0
  return image.astype(jnp.float32)


def turned(key: Key[Array, ""], image: Float[Array, "y x c"]) -> Float[Array, "y x c"]:
  """One of the eight flips and quarter turns of a square picture, each as likely."""
  across, down, swap = jax.random.bernoulli(key, 0.5, (3,))
  image = jnp.where(across, image[:, ::-1], image)
  image = jnp.where(down, image[::-1], image)
  return jnp.where(swap, image.swapaxes(0, 1), image)


def _is_box(x) -> bool:
  return isinstance(x, nn.meta.AxisMetadata)


def _with_member_axis(leaf):
  """A stacked parameter in its box, with the name of the axis that was put in front."""
  if _is_box(leaf):
    return leaf.add_axis(0, {nn.PARTITION_NAME: MEMBERS})
  return nn.LogicallyPartitioned(leaf, (MEMBERS, *(None,) * (leaf.ndim - 1)))
