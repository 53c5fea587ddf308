"""What does a masked model predict, and how wrong is it?

He et al. 2022 (MAE), sec. 3: mean squared error on the pixels of hidden patches, each patch
normalised by its own mean and deviation or not. Sums run over the whole batch as it is sharded: the
loss is one ratio of global sums, so it depends neither on the number of devices nor on how many
targets each sample has.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Under the root of the patch's deviation (facebookresearch/mae).
NORM_EPS = 1e-6


def patch_stats(
  patches: Float[Array, "b n p"],
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
  """Mean and deviation of each patch, float32; the variance is the unbiased one."""
  patches = patches.astype(jnp.float32)
  mean = patches.mean(axis=-1, keepdims=True)
  var = jnp.sum((patches - mean) ** 2, axis=-1, keepdims=True) / (patches.shape[-1] - 1)
  return mean, jnp.sqrt(var + NORM_EPS)


def pixel_targets(patches: Float[Array, "b n p"], norm_pix: bool) -> Float[Array, "b n p"]:
  """What is to be predicted for each patch, float32."""
  if not norm_pix:
    return patches.astype(jnp.float32)
  mean, std = patch_stats(patches)
  return (patches.astype(jnp.float32) - mean) / std


def masked_mse(
  pred: Float[Array, "b m p"], target: Float[Array, "b m p"], weight: Float[Array, "b m"]
) -> Float[Array, ""]:
  """Weighted mean over targets of the mean squared error of a patch; zero without targets."""
  return masked_error(pred, target, weight) / total_weight(weight)


def masked_error(
  pred: Float[Array, "b m p"], target: Float[Array, "b m p"], weight: Float[Array, "b m"]
) -> Float[Array, ""]:
  """Weighted sum over targets of the mean squared error of a patch."""
  error = jnp.mean((pred.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=-1)
  # where, not a product: what does not count may not leak an infinity or a NaN.
  return jnp.sum(jnp.where(weight > 0, error * weight, 0.0))


def total_weight(weight: Float[Array, "b m"]) -> Float[Array, ""]:
  """What a sum of errors is divided by: never zero."""
  return jnp.maximum(jnp.sum(weight), 1e-9)


def pixel_mse(
  pred: Float[Array, "b y x c"], target: Float[Array, "b y x c"], weight: Float[Array, "b y x"]
) -> Float[Array, ""]:
  """Weighted mean over pixels of the mean squared error of their channels.

  With weights of 0 and 1, or soft ones, it is FocusMIM's loss (Weiler et al. 2024): the sum of
  weighted errors over the sum of weights, of all pixels and channels of the whole batch.
  """
  flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
  return masked_mse(flat(pred), flat(target), weight.reshape(weight.shape[0], -1))
