"""How well do images and texts of a batch find each other? The sigmoid and the softmax loss.

n pairs; z unit vectors (n, d); logits (n, n) with images in rows. Everything is float32.
`contrastive_loss` takes the vectors of a batch that lies cut over devices without ever having all
logits; `sigmoid_loss` and `softmax_loss` are the formulas, with all of them.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from big_vision_ext.core import sharding
from big_vision_ext.objectives import all_pairs

Scalar = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Contrast:
  """How a task contrasts images with texts.

  Attributes:
    form: the loss.
    implementation: "dense" has all n * n logits at once, cut over the devices by rows; "ring"
      only ever (chunk, n / devices) on a device, and gradients of first order only. None: "ring"
      where the batch lies cut over devices, else "dense".
    chunk: a device's images that meet the texts at hand at once.
  """

  form: Literal["sigmoid", "softmax"] = "sigmoid"
  implementation: Literal["dense", "ring"] | None = None
  chunk: int = 1024

  def __post_init__(self):
    if self.chunk < 1:
      raise ValueError(f"contrast.chunk={self.chunk}: expected at least 1")


def contrastive_loss(
  zimg: Float[Array, "n d"],
  ztxt: Float[Array, "n d"],
  t: Scalar,
  b: Scalar | float = 0.0,
  how: Contrast = Contrast(),
) -> tuple[Scalar, dict[str, Scalar]]:
  """The loss of `sigmoid_loss` or `softmax_loss`, computed as `how` says.

  Arguments and result are theirs. The ring is over the batch axes of the mesh in force. No
  gradient goes through the metrics.
  """
  _check(zimg, ztxt)
  if how.implementation != "dense":
    ring = sharding.batch_ring(zimg.shape[0])
    if how.implementation or ring:
      t, b = jnp.float32(t), jnp.float32(b)
      return _in_a_ring((how.form, how.chunk, ring), zimg, ztxt, t, b)
  dense = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
  return dense[how.form](zimg, ztxt, t, b)


def sigmoid_loss(
  zimg: Float[Array, "n d"], ztxt: Float[Array, "n d"], t: Scalar, b: Scalar
) -> tuple[Scalar, dict[str, Scalar]]:
  """Every image with every text is one binary question; the sum over pairs, divided by n.

  Zhai et al. 2023 ("Sigmoid loss for language image pre-training"), algorithm 1.

  Args:
    zimg: unit vectors of images.
    ztxt: unit vectors of their texts, in the same order.
    t: temperature, the factor of the similarities (not its logarithm).
    b: bias.

  Returns:
    The loss and the metrics of `metrics`.
  """
  _check(zimg, ztxt)
  logits = similarities(zimg, ztxt) * t + b
  sign = 2.0 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1.0
  loss = jnp.sum(jax.nn.softplus(-sign * logits)) / logits.shape[0]
  return loss, metrics(logits)


def softmax_loss(
  zimg: Float[Array, "n d"], ztxt: Float[Array, "n d"], t: Scalar, b: Scalar | float = 0.0
) -> tuple[Scalar, dict[str, Scalar]]:
  """Cross-entropy of the right text given the image and of the right image given the text, halved.

  Radford et al. 2021 (CLIP), figure 3. Arguments and result as in `sigmoid_loss`; a bias does not
  change the loss.
  """
  _check(zimg, ztxt)
  logits = similarities(zimg, ztxt) * t + b
  right = jnp.diagonal(logits)
  to_text = jnp.mean(jax.nn.logsumexp(logits, axis=1) - right)
  to_image = jnp.mean(jax.nn.logsumexp(logits, axis=0) - right)
  return (to_text + to_image) / 2, metrics(logits)


def similarities(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> Float[Array, "n m"]:
  """Inner products, accumulated in float32 whatever the type of the vectors."""
  return jnp.einsum("nd,md->nm", zimg, ztxt, preferred_element_type=jnp.float32)


def metrics(logits: Float[Array, "n n"]) -> dict[str, Scalar]:
  """Mean logit of the right and of the wrong pairs, and the share of rightly found partners.

  Texts of which the batch holds copies count as found if any copy ties for the best.
  """
  logits = jax.lax.stop_gradient(logits)
  n = logits.shape[0]
  right = jnp.diagonal(logits)
  # One pair has no wrong partner: 0 / 1 rather than 0 / 0.
  wrong = (jnp.sum(logits) - jnp.sum(right)) / max(float(n) * (n - 1), 1.0)
  return {
    "pos_logit": jnp.mean(right),
    "neg_logit": wrong,
    "acc_i2t": jnp.mean((right >= logits.max(axis=1)).astype(jnp.float32)),
    "acc_t2i": jnp.mean((right >= logits.max(axis=0)).astype(jnp.float32)),
  }


def _check(zimg, ztxt):
  if zimg.ndim != 2 or ztxt.shape != zimg.shape:
    raise ValueError(
      f"A contrastive loss wants as many text as image vectors of one width, got images "
      f"{zimg.shape} and texts {ztxt.shape}."
    )


# The gradient of a mean is known when its value is: computing both in one pass round the ring
# costs one product less than going round again, and nothing of a hop is kept for later.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_a_ring(plan, zimg, ztxt, t, b):
  return _run(plan, zimg, ztxt, t, b, gradients=False)[0]


def _forward(plan, zimg, ztxt, t, b):
  out, grads = _run(plan, zimg, ztxt, t, b, gradients=True)
  return out, grads


def _backward(plan, grads, cotangents):
  del plan
  return tuple(cotangents[0].astype(g.dtype) * g for g in grads)


_in_a_ring.defvjp(_forward, _backward)


def _run(plan, zimg, ztxt, t, b, gradients):
  """((loss, metrics), gradients with respect to zimg, ztxt, t and b, or nothing)."""
  form, chunk, ring = plan
  run = functools.partial(_on_device, form, chunk, ring, gradients)
  if ring is None:
    return run(zimg, ztxt, t, b)
  rows, one = PartitionSpec(ring.axes), PartitionSpec()
  out = (one, one), (rows, rows, one, one) if gradients else ()
  return jax.shard_map(run, in_specs=(rows, rows, one, one), out_specs=out)(zimg, ztxt, t, b)


def _on_device(form, chunk, ring, gradients, zimg, ztxt, t, b):
  """A device's part; its pairs are on the diagonal of the logits of all."""
  n = len(zimg) * (ring.size if ring else 1)
  total = (lambda x: jax.lax.psum(x, ring.axes)) if ring else (lambda x: x)
  number = jnp.arange(len(zimg))
  if ring:
    number += jax.lax.axis_index(ring.axes) * len(zimg)
  images, texts = {"z": zimg, "number": number}, {"z": ztxt, "number": number}
  meet = functools.partial(all_pairs.meet, chunk=chunk, ring=ring, how=_HOW)
  visit = functools.partial(_FORMS[form], t, b)
  if form == "softmax":
    of_img, of_txt, sums = meet(visit, images, texts)
    right = of_img["right"]
    loss = total(jnp.sum(of_img["lse"] - right) + jnp.sum(of_txt["lse"] - right)) / (2 * n)
    if gradients:
      images["lse"], texts["lse"] = of_img["lse"], of_txt["lse"]
      grads = meet(functools.partial(_softmax_gradients, t, b), images, texts)
  else:
    of_img, of_txt, sums = grads = meet(functools.partial(visit, gradients), images, texts)
    right, loss = of_img["right"], total(sums["loss"]) / n
  rights = total(jnp.sum(right))
  found = lambda best: total(jnp.sum((right >= best).astype(jnp.float32))) / n
  metrics = {
    "pos_logit": rights / n,
    "neg_logit": (total(sums["logits"]) - rights) / max(float(n) * (n - 1), 1.0),
    "acc_i2t": found(of_img["best"]),
    "acc_t2i": found(of_txt["best"]),
  }
  if not gradients:
    return (loss, metrics), ()
  scale = lambda x, z: (x / n).astype(z.dtype)
  dimg, dtxt = scale(grads[0]["dz"], zimg), scale(grads[1]["dz"], ztxt)
  return (loss, metrics), (dimg, dtxt, total(grads[2]["dt"]) / n, total(grads[2]["db"]) / n)


_HOW = {
  "right": "max", "best": "max", "lse": "logsumexp",
  "loss": "sum", "logits": "sum", "dz": "sum", "dt": "sum", "db": "sum",
}  # fmt: skip


def _block(t, b, images, texts):
  """Similarities and logits (r, c) of some images with some texts, and which are pairs."""
  similar = similarities(images["z"], texts["z"])
  return similar, similar * t + b, images["number"][:, None] == texts["number"]


def _seen(logits, same):
  """What the metrics need. The logit of a pair is taken from where its rivals come from: computed
  in another way, rounding would decide which of the two is larger."""
  right = jnp.max(jnp.where(same, logits, -jnp.inf), axis=1)
  of_img, of_txt = {"right": right, "best": jnp.max(logits, axis=1)}, {"best": logits.max(axis=0)}
  return of_img, of_txt, {"logits": jnp.sum(logits)}


def _sigmoid(t, b, gradients, images, texts):
  similar, logits, same = _block(t, b, images, texts)
  sign = jnp.where(same, 1.0, -1.0)
  of_img, of_txt, sums = _seen(logits, same)
  sums["loss"] = jnp.sum(jax.nn.softplus(-sign * logits))
  if gradients:
    more = _gradients(t, -sign * jax.nn.sigmoid(-sign * logits), similar, images, texts)
    of_img, of_txt, sums = (a | b for a, b in zip((of_img, of_txt, sums), more))
  return of_img, of_txt, sums


def _softmax(t, b, images, texts):
  _, logits, same = _block(t, b, images, texts)
  of_img, of_txt, sums = _seen(logits, same)
  lse = functools.partial(jax.nn.logsumexp, logits)
  return of_img | {"lse": lse(axis=1)}, of_txt | {"lse": lse(axis=0)}, sums


def _softmax_gradients(t, b, images, texts):
  similar, logits, same = _block(t, b, images, texts)
  chosen = jnp.exp(logits - images["lse"][:, None]) + jnp.exp(logits - texts["lse"])
  return _gradients(t, chosen / 2 - same, similar, images, texts)


def _gradients(t, dlogits, similar, images, texts):
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  return (
    {"dz": t * product("rc,cd->rd", dlogits, texts["z"])},
    {"dz": t * product("rc,rd->cd", dlogits, images["z"])},
    {"dt": jnp.sum(dlogits * similar), "db": jnp.sum(dlogits)},
  )


_FORMS = {"sigmoid": _sigmoid, "softmax": _softmax}
