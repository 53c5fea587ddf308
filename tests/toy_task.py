"""A task small enough to train in a test: a two-layer regression of the region's box from pixels.

Named in a config as `task = "tests.toy_task"`. It has what real tasks have: logical axes, a scalar
parameter, randomness in the loss, a post-update hook, named outputs.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_ext.core import config as config_lib


class Net(nn.Module):
  width: int
  out: int = 4

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    x = nn.Dense(self.width, name="fc1",
                 kernel_init=nn.with_logical_partitioning(init, ("embed", "mlp")))(x)
    x = nn.with_logical_constraint(nn.tanh(x), ("act_batch", "act_mlp"))
    x = nn.Dense(self.out, name="fc2",
                 kernel_init=nn.with_logical_partitioning(init, ("mlp", None)))(x)
    t = self.param("t", nn.initializers.constant(0.1), (1,))
    return x * jnp.exp(t)


@dataclasses.dataclass(frozen=True)
class Toy:
  width: int = 16
  size: int = 8
  text_len: int = 4
  noise: float = 0.1
  nan_at: float = -1.0  # a loss above this becomes NaN; negative: never
  nan_below: float = -1.0  # the loss of a batch with a pixel mean below this becomes NaN

  @property
  def _net(self):
    return Net(self.width)

  def init(self, rng, batch):
    return self._net.init(rng, self._inputs(batch))["params"]

  def loss(self, params, batch, rng, train):
    x = self._inputs(batch)
    if train:
      x += self.noise * jax.random.normal(rng, x.shape)
    y = self._net.apply({"params": params}, x)
    error = jnp.mean((y - batch["box"] / self.size) ** 2)
    loss = jnp.where((self.nan_at >= 0) & (error > self.nan_at), jnp.nan, error)
    loss = jnp.where(batch["image"].astype(jnp.float32).mean() < self.nan_below, jnp.nan, loss)
    return loss, {"error": error}

  @property
  def outputs(self):
    def image(params, batch):
      return self._net.apply({"params": params}, self._inputs(batch))

    def text(params, batch):
      return batch["text"].astype(jnp.float32) @ params["fc2"]["kernel"][:self.text_len]
    return {"image": image, "text": text}

  def batch_spec(self, batch_size):
    return {
        "image": jax.ShapeDtypeStruct((batch_size, self.size, self.size, 3), jnp.uint8),
        "box": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32),
    }

  def after_update(self, params, step):
    del step
    return {**params, "t": jnp.minimum(params["t"], 0.2)}

  def _inputs(self, batch):
    x = batch["image"].astype(jnp.float32) / 255 - 0.5
    return x.reshape(x.shape[0], -1)


def make(model_config):
  return config_lib.build(Toy, model_config, "config.model")
