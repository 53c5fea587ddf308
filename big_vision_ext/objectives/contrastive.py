"""How well do images and texts of a batch find each other? The sigmoid and the softmax loss.

n pairs; z unit vectors (n, d); logits (n, n) with images in rows. Everything is float32.
`contrastive_loss` takes the vectors of a batch that lies cut over devices without ever having all
logits; `sigmoid_loss` and `softmax_loss` are the formulas, with all of them.

A batch may hold a caption or an image more than once: an image and the caption of its copy are then
no wrong pair. What becomes of such copies, `Contrast.duplicates` says (`objectives.copies` finds
them).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from big_vision_ext.core import sharding
from big_vision_ext.objectives import all_pairs, copies

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
    duplicates: what an image and the text of another row are whose text or image is the same:
      a wrong pair as any ("negatives"), no pair at all ("ignore"), or one as right as its own
      ("positives"): the softmax's target is then spread evenly over all right ones.
  """

  form: Literal["sigmoid", "softmax"] = "sigmoid"
  implementation: Literal["dense", "ring"] | None = None
  chunk: int = 1024
  duplicates: copies.Duplicates = "negatives"

  def __post_init__(self):
    if self.chunk < 1:
      raise ValueError(f"contrast.chunk={self.chunk}: expected at least 1")


def contrastive_loss(
  zimg: Float[Array, "n d"],
  ztxt: Float[Array, "n d"],
  t: Scalar,
  b: Scalar | float = 0.0,
  how: Contrast = Contrast(),
  keys: copies.Keys = (),
) -> tuple[Scalar, dict[str, Scalar]]:
  """The loss of `sigmoid_loss` or `softmax_loss`, computed as `how` says.

  Arguments and result are theirs; `keys` tell which rows are copies (see `copies.of_rows`), where
  `how.duplicates` wants to know. The ring is over the batch axes of the mesh in force. No gradient
  goes through the metrics.

  Raises:
    ValueError: shapes that do not fit, or no keys where they are needed.
  """
  _check(zimg, ztxt)
  if how.duplicates == "negatives":
    keys = ()
  elif not keys:
    raise ValueError(
      f"contrast.duplicates={how.duplicates!r}: the task tells of no rows that could be equal; "
      "set it to 'negatives'."
    )
  if how.implementation != "dense":
    ring = sharding.batch_ring(zimg.shape[0])
    if how.implementation or ring:
      t, b = jnp.float32(t), jnp.float32(b)
      return _in_a_ring((how.form, how.chunk, ring, how.duplicates), zimg, ztxt, t, b, keys)
  dense = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
  same = copies.pairs(keys, keys) if keys else None
  return dense[how.form](zimg, ztxt, t, b, same, how.duplicates)


def sigmoid_loss(
  zimg: Float[Array, "n d"],
  ztxt: Float[Array, "n d"],
  t: Scalar,
  b: Scalar,
  same: Bool[Array, "n n"] | None = None,
  duplicates: copies.Duplicates = "negatives",
) -> tuple[Scalar, dict[str, Scalar]]:
  """Every image with every text is one binary question; the sum over pairs, divided by n.

  Zhai et al. 2023 ("Sigmoid loss for language image pre-training"), algorithm 1.

  Args:
    zimg: unit vectors of images.
    ztxt: unit vectors of their texts, in the same order.
    t: temperature, the factor of the similarities (not its logarithm).
    b: bias.
    same: which rows have the same text or image; symmetric, true on the diagonal.
    duplicates: what becomes of them; see `Contrast`.

  Returns:
    The loss and the metrics of `metrics`.
  """
  _check(zimg, ztxt)
  logits = similarities(zimg, ztxt) * t + b
  n = logits.shape[0]
  right, rivals, counted = _roles(jnp.eye(n, dtype=bool), same, duplicates)
  sign = jnp.where(right, 1.0, -1.0)
  loss = jnp.sum(_where(counted, jax.nn.softplus(-sign * logits), 0.0)) / n
  return loss, metrics(logits, rivals)


def softmax_loss(
  zimg: Float[Array, "n d"],
  ztxt: Float[Array, "n d"],
  t: Scalar,
  b: Scalar | float = 0.0,
  same: Bool[Array, "n n"] | None = None,
  duplicates: copies.Duplicates = "negatives",
) -> tuple[Scalar, dict[str, Scalar]]:
  """Cross-entropy of the right text given the image and of the right image given the text, halved.

  Radford et al. 2021 (CLIP), figure 3. Arguments and result as in `sigmoid_loss`; a bias does not
  change the loss.
  """
  _check(zimg, ztxt)
  logits = similarities(zimg, ztxt) * t + b
  right, rivals, counted = _roles(jnp.eye(logits.shape[0], dtype=bool), same, duplicates)
  among = _where(counted, logits, -jnp.inf)
  aims = [jnp.sum(jnp.where(right, logits, 0.0), a) / jnp.sum(right, a) for a in (1, 0)]
  to_text = jnp.mean(jax.nn.logsumexp(among, axis=1) - aims[0])
  to_image = jnp.mean(jax.nn.logsumexp(among, axis=0) - aims[1])
  return (to_text + to_image) / 2, metrics(logits, rivals)


def similarities(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> Float[Array, "n m"]:
  """Inner products, accumulated in float32 whatever the type of the vectors."""
  return jnp.einsum("nd,md->nm", zimg, ztxt, preferred_element_type=jnp.float32)


def metrics(
  logits: Float[Array, "n n"], rivals: Bool[Array, "n n"] | None = None
) -> dict[str, Scalar]:
  """Mean logit of own and of wrong pairs, and the share of rightly found partners.

  Texts of which the batch holds copies count as found if any copy ties for the best; where copies
  are no wrong pairs, not among `rivals`, they take no part.
  """
  logits = jax.lax.stop_gradient(logits)
  n = logits.shape[0]
  own = jnp.diagonal(logits)
  rivals = ~jnp.eye(n, dtype=bool) if rivals is None else rivals
  best = [jnp.max(jnp.where(rivals, logits, -jnp.inf), axis=axis) for axis in (1, 0)]
  # One pair has no wrong partner: 0 / 1 rather than 0 / 0.
  wrong = jnp.sum(jnp.where(rivals, logits, 0.0)) / jnp.maximum(jnp.sum(rivals), 1)
  return {
    "pos_logit": jnp.mean(own),
    "neg_logit": wrong,
    "acc_i2t": jnp.mean((own >= best[0]).astype(jnp.float32)),
    "acc_t2i": jnp.mean((own >= best[1]).astype(jnp.float32)),
  }


def _roles(own, same, duplicates):
  """Which pairs are right, which are wrong and which count at all (None: all), given each row's
  own and those of equal rows."""
  if same is None or duplicates == "negatives":
    return own, ~own, None
  alike = own | same
  return (alike, ~alike, None) if duplicates == "positives" else (own, ~alike, own | ~same)


def _where(counted, x, other):
  return x if counted is None else jnp.where(counted, x, other)


def _check(zimg, ztxt):
  if zimg.ndim != 2 or ztxt.shape != zimg.shape:
    raise ValueError(
      f"A contrastive loss wants as many text as image vectors of one width, got images "
      f"{zimg.shape} and texts {ztxt.shape}."
    )


# The gradient of a mean is known when its value is: computing both in one pass round the ring
# costs one product less than going round again, and nothing of a hop is kept for later.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_a_ring(plan, zimg, ztxt, t, b, keys):
  return _run(plan, zimg, ztxt, t, b, keys, gradients=False)[0]


def _forward(plan, zimg, ztxt, t, b, keys):
  out, grads = _run(plan, zimg, ztxt, t, b, keys, gradients=True)
  return out, grads


def _backward(plan, grads, cotangents):
  del plan
  return *(cotangents[0].astype(g.dtype) * g for g in grads), None


_in_a_ring.defvjp(_forward, _backward)


def _run(plan, zimg, ztxt, t, b, keys, gradients):
  """((loss, metrics), gradients with respect to zimg, ztxt, t and b, or nothing)."""
  ring = plan[2]
  run = functools.partial(_on_device, plan, gradients)
  if ring is None:
    return run(zimg, ztxt, t, b, keys)
  rows, one = PartitionSpec(ring.axes), PartitionSpec()
  out = (one, one), (rows, rows, one, one) if gradients else ()
  places = (rows, rows, one, one, rows)
  return jax.shard_map(run, in_specs=places, out_specs=out)(zimg, ztxt, t, b, keys)


def _on_device(plan, gradients, zimg, ztxt, t, b, keys):
  """A device's part; its pairs are on the diagonal of the logits of all."""
  form, chunk, ring, duplicates = plan
  n = len(zimg) * (ring.size if ring else 1)
  total = (lambda x: jax.lax.psum(x, ring.axes)) if ring else (lambda x: x)
  number = jnp.arange(len(zimg))
  if ring:
    number += jax.lax.axis_index(ring.axes) * len(zimg)
  images, texts = ({"z": z, "number": number, "keys": keys} for z in (zimg, ztxt))
  meet = functools.partial(all_pairs.meet, chunk=chunk, ring=ring, how=_HOW)
  block = functools.partial(_block, duplicates, t, b)
  if form == "softmax":
    of_img, of_txt, sums = meet(functools.partial(_softmax, block), images, texts)
    for side, found in ((images, of_img), (texts, of_txt)):
      side |= {"lse": found["lse"], "rights": found["rights"]}
    off = lambda found: jnp.sum(found["lse"] - found["aim"] / found["rights"])
    loss = total(off(of_img) + off(of_txt)) / (2 * n)
    if gradients:
      grads = meet(functools.partial(_softmax_gradients, t, block), images, texts)
  else:
    visit = functools.partial(_sigmoid, t, block, gradients)
    of_img, of_txt, sums = grads = meet(visit, images, texts)
    loss = total(sums["loss"]) / n
  own = of_img["own"]
  found = lambda best: total(jnp.sum((own >= best).astype(jnp.float32))) / n
  metrics = {
    "pos_logit": total(jnp.sum(own)) / n,
    "neg_logit": total(sums["wrong"]) / jnp.maximum(total(sums["wrongs"]), 1.0),
    "acc_i2t": found(of_img["best"]),
    "acc_t2i": found(of_txt["best"]),
  }
  if not gradients:
    return (loss, metrics), ()
  scale = lambda x, z: (x / n).astype(z.dtype)
  dimg, dtxt = scale(grads[0]["dz"], zimg), scale(grads[1]["dz"], ztxt)
  return (loss, metrics), (dimg, dtxt, total(grads[2]["dt"]) / n, total(grads[2]["db"]) / n)


_HOW = {
  "own": "max", "best": "max", "lse": "logsumexp", "aim": "sum", "rights": "sum",
  "loss": "sum", "wrong": "sum", "wrongs": "sum", "dz": "sum", "dt": "sum", "db": "sum",
}  # fmt: skip


def _block(duplicates, t, b, images, texts):
  """Similarities and logits (r, c) of some images with some texts, which pairs are rows' own, and
  what `_roles` says of them."""
  similar = similarities(images["z"], texts["z"])
  own = images["number"][:, None] == texts["number"]
  same = copies.pairs(images["keys"], texts["keys"]) if images["keys"] else None
  return similar, similar * t + b, own, *_roles(own, same, duplicates)


def _seen(logits, own, rivals):
  """What the metrics need. The logit of a pair is taken from where its rivals come from: computed
  in another way, rounding would decide which of the two is larger."""
  among = jnp.where(rivals, logits, -jnp.inf)
  of_img = {"own": jnp.max(jnp.where(own, logits, -jnp.inf), axis=1), "best": among.max(axis=1)}
  sums = {"wrong": jnp.sum(jnp.where(rivals, logits, 0.0)),
          "wrongs": jnp.sum(rivals.astype(jnp.float32))}
  return of_img, {"best": among.max(axis=0)}, sums


def _sigmoid(t, block, gradients, images, texts):
  similar, logits, own, right, rivals, counted = block(images, texts)
  sign = jnp.where(right, 1.0, -1.0)
  of_img, of_txt, sums = _seen(logits, own, rivals)
  sums["loss"] = jnp.sum(_where(counted, jax.nn.softplus(-sign * logits), 0.0))
  if gradients:
    dlogits = _where(counted, -sign * jax.nn.sigmoid(-sign * logits), 0.0)
    more = _gradients(t, dlogits, similar, images, texts)
    of_img, of_txt, sums = (a | b for a, b in zip((of_img, of_txt, sums), more))
  return of_img, of_txt, sums


def _softmax(block, images, texts):
  _, logits, own, right, rivals, counted = block(images, texts)
  of_img, of_txt, sums = _seen(logits, own, rivals)
  among = _where(counted, logits, -jnp.inf)
  aim = jnp.where(right, logits, 0.0)
  more = [{
    "lse": jax.nn.logsumexp(among, axis=axis),
    "aim": jnp.sum(aim, axis=axis),
    "rights": jnp.sum(right.astype(jnp.float32), axis=axis),
  } for axis in (1, 0)]  # fmt: skip
  return of_img | more[0], of_txt | more[1], sums


def _softmax_gradients(t, block, images, texts):
  similar, logits, _, right, _, counted = block(images, texts)
  chosen = jnp.exp(logits - images["lse"][:, None]) + jnp.exp(logits - texts["lse"])
  aims = 1 / images["rights"][:, None] + 1 / texts["rights"]
  dlogits = _where(counted, chosen - jnp.where(right, aims, 0.0), 0.0) / 2
  return _gradients(t, dlogits, similar, images, texts)


def _gradients(t, dlogits, similar, images, texts):
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  return (
    {"dz": t * product("rc,cd->rd", dlogits, texts["z"])},
    {"dz": t * product("rc,rd->cd", dlogits, images["z"])},
    {"dt": jnp.sum(dlogits * similar), "db": jnp.sum(dlogits)},
  )
