"""How does a vocabulary of codes learn, and how is an autoencoder of images judged?

van den Oord et al. 2017 for the codes, Esser et al. 2021 (VQGAN) for the critic. All means are over
every element, as in the implementations; the paper sums over the width of a code.

b batch, h w sides of a latent map, d width of a code, n codes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Against a division by the gradient of a critic that is of one mind (VQGAN's number).
_EPS = 1e-4


def code_losses(
  latent: Float[Array, "b h w d"], vector: Float[Array, "b h w d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """|sg(z) - e|^2, which moves the codes, and |z - sg(e)|^2, the encoder's commitment to them.

  van den Oord et al. 2017, eq. 3: its loss is the first plus beta times the second. (CodeFormer has
  beta on the first.)
  """
  stop = jax.lax.stop_gradient
  return jnp.mean((stop(latent) - vector) ** 2), jnp.mean((latent - stop(vector)) ** 2)


def cross_entropy(
  logits: Float[Array, "b h w n"], index: Int[Array, "b h w"]
) -> Float[Array, ""]:
  """Of the codes that belong at each place, averaged over places."""
  chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def frequencies(index: Int[Array, "b h w"], size: int) -> Float[Array, "n"]:
  """How often each of `size` codes is used, as shares that add up to 1."""
  counts = jnp.zeros((size,), jnp.float32).at[index.reshape(-1)].add(1.0)
  return counts / index.size


def perplexity(shares: Float[Array, "n"]) -> Float[Array, ""]:
  """exp of the entropy of shares: so many codes, equally used, would be as varied.

  From 1, one code for everything, to n. Shares need not add up to 1: a running mean that began at
  0 does not.
  """
  shares = shares / jnp.maximum(jnp.sum(shares), 1e-20)
  safe = jnp.where(shares > 0, shares, 1.0)
  return jnp.exp(-jnp.sum(shares * jnp.log(safe)))


def spare_vectors(
  key: Key[Array, ""], latent: Float[Array, "b h w d"], count: int
) -> Float[Array, "n d"]:
  """`count` vectors of a latent map, drawn without replacement while there are any."""
  flat = latent.reshape(-1, latent.shape[-1])
  order = jax.random.permutation(key, len(flat))
  return jax.lax.stop_gradient(flat[jnp.resize(order, (count,))])


def revive(
  codebook: Float[Array, "n d"], usage: Float[Array, "n"], spare: Float[Array, "n d"],
  due: Any, threshold: float,
) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
  """The codes and their usage, with spare vectors in place of codes that are hardly used.

  Args:
    codebook: the codes.
    usage: running shares.
    spare: what replaces each.
    due: whether it is time; else nothing changes.
    threshold: in even shares, 1 / n; below that a code is dead.
  """
  dead = jnp.asarray(due) & (usage < threshold / len(usage))
  book = jnp.where(dead[:, None], spare.astype(codebook.dtype), codebook)
  # A new code has until the next time to be found.
  return book, jnp.where(dead, 1.0 / len(usage), usage)


def critic_loss(real: Float[Array, "b h w"], drawn: Float[Array, "b h w"]) -> Float[Array, ""]:
  """Hinge loss of scores: real images above 1, drawn ones below -1 (Lim and Ye 2017)."""
  return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + drawn)))


def balance(
  paint: Callable, kernel: Any, pixel_loss: Callable, critic_term: Callable, largest: float
) -> Float[Array, ""]:
  """How much the critic should count, so that both losses pull equally at the last layer.

  Esser et al. 2021, eq. 7.

  Args:
    paint: `paint(kernel)`, the image that the last layer makes.
    kernel: the last layer's parameters.
    pixel_loss, critic_term: of an image.
    largest: bound of the weight.
  """
  image, pull = jax.vjp(paint, kernel)

  def norm(loss):
    squares = jax.tree.map(lambda g: jnp.sum(g**2), pull(jax.grad(loss)(image)))
    return jnp.sqrt(sum(jax.tree.leaves(squares)))

  weight = norm(pixel_loss) / (norm(critic_term) + _EPS)
  return jax.lax.stop_gradient(jnp.minimum(weight, largest))
