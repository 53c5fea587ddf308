"""How well do images and texts of a batch find each other? The sigmoid and the softmax loss.

n pairs; z unit vectors (n, d); logits (n, n) with images in rows. Everything is float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]


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
  logits = similarities(zimg, ztxt) * t + b
  right = jnp.diagonal(logits)
  to_text = jnp.mean(jax.nn.logsumexp(logits, axis=1) - right)
  to_image = jnp.mean(jax.nn.logsumexp(logits, axis=0) - right)
  return (to_text + to_image) / 2, metrics(logits)


def similarities(zimg: Float[Array, "n d"], ztxt: Float[Array, "m d"]) -> Float[Array, "n m"]:
  """Inner products, accumulated in float32 whatever the type of the vectors."""
  if zimg.ndim != 2 or ztxt.shape != zimg.shape:
    raise ValueError(
      f"A contrastive loss wants as many text as image vectors of one width, got images "
      f"{zimg.shape} and texts {ztxt.shape}."
    )
  return jnp.einsum("nd,md->nm", zimg, ztxt, preferred_element_type=jnp.float32)


def metrics(logits: Float[Array, "n n"]) -> dict[str, Scalar]:
  """Mean logit of the right and of the wrong pairs, and the share of rightly found partners.

  Texts of which the batch holds copies count as found if any copy ties for the best.
  """
  logits = jax.lax.stop_gradient(logits)
  n = logits.shape[0]
  right = jnp.diagonal(logits)
  # One pair has no wrong partner: 0 / 1 rather than 0 / 0.
  wrong = (jnp.sum(logits) - jnp.sum(right)) / max(n * (n - 1), 1)
  return {
    "pos_logit": jnp.mean(right),
    "neg_logit": wrong,
    "acc_i2t": jnp.mean((right >= logits.max(axis=1)).astype(jnp.float32)),
    "acc_t2i": jnp.mean((right >= logits.max(axis=0)).astype(jnp.float32)),
  }
