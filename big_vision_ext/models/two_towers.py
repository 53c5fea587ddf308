"""How are images and texts put into one space? Two towers, with big_vision's names."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from big_vision_ext.models import vit
from big_vision_ext.models.text import TextTransformer


class TwoTowers(nn.Module):
  """CLIP- and SigLIP-like model: `img`, `txt`, log temperature `t`, bias `b`.

  Attributes:
    image: fields of `vit.ViT`; `variant` and `image_size` as in `vit.build`.
    text: fields of `text.TextTransformer`; `variant` likewise; `out_dim` defaults to the width of
      the image vectors.
    temperature_init: what the similarities are multiplied with at first.
    bias_init: what is added to them at first; None for a model without bias (CLIP).
  """

  image: Mapping[str, Any]
  text: Mapping[str, Any]
  temperature_init: float = 10.0
  bias_init: float | None = -10.0

  def setup(self):
    self.img = vit.build(vit.ViT, self.image, "model.image")
    width = self.img.num_classes or self.img.rep_size or self.img.width
    width = self.img.width if width < 0 else width
    self.txt = vit.build(TextTransformer, {"out_dim": width} | dict(self.text), "model.text")
    if (self.txt.out_dim or self.txt.width) != width:
      raise ValueError(
        f"Image vectors are {width} wide and text vectors {self.txt.out_dim or self.txt.width}; "
        f"set model.text.out_dim={width}."
      )
    if self.temperature_init <= 0:
      raise ValueError(f"temperature_init={self.temperature_init} must be above zero.")
    log_t = nn.initializers.constant(np.log(self.temperature_init))
    self.t = self.param("t", log_t, (1,), jnp.float32)
    if self.bias_init is not None:
      self.b = self.param("b", nn.initializers.constant(self.bias_init), (1,), jnp.float32)

  def __call__(self, image=None, text=None, deterministic: bool = True):
    """Embeds images (b, y, x, c), texts (b, t) of ids, or both.

    Returns:
      Unit vectors of the images and of the texts, float32 (b, d), None for what was not given;
      and out: `t` () the temperature, `b` () the bias, if any, `img` and `txt` what the towers
      give.
    """
    out = {"t": jnp.exp(self.t)[0]}
    if self.bias_init is not None:
      out["b"] = self.b[0]
    zimg = ztxt = None
    if image is not None:
      zimg, out["img"] = self.img(image, deterministic)
      zimg = normalize(zimg)
    if text is not None:
      ztxt, out["txt"] = self.txt(text, deterministic)
      ztxt = normalize(ztxt)
    return zimg, ztxt, out


def normalize(z: Float[Array, "... d"]) -> Float[Array, "... d"]:
  """Vectors of length one, in float32. A vector of zeros stays zero, with gradient zero."""
  z = z.astype(jnp.float32)
  square = jnp.sum(z * z, axis=-1, keepdims=True)
  norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  return z / (jnp.where(square > 0, norm, 0.0) + 1e-8)
