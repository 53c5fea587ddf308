"""How is an image written in a few hundred words of a fixed vocabulary, and read back?

A convolutional encoder, a book of codes and a decoder (van den Oord et al. 2017; the blocks as
CodeFormer describes its own, Zhou et al. 2022). As a content prior it is trained on clean images:
whatever codes the decoder is given, what it draws looks like one of them.

A skip lets the encoder's features into the decoder, as much as `w` says: 0 none, so that only the
codes pass, 1 all. CodeFormer's sizes are the defaults, but for a factor of 8 instead of 32, for
crops of 128 and 256 pixels: ours. For images of 512 pixels `mults=(1, 2, 2, 4, 4, 8)`,
`attention=(5,)`, `fuse_levels=(1, 2, 3, 4)`. Parameters are not theirs name by name.

b batch, y x rows and columns, h w those of the latent map, d width of a code, n codes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import vq_parts


class VQAutoencoder(nn.Module):
  """Encoder, codes and decoder. Images are in 0..1, of any size that `factor` divides.

  Attributes:
    width: channels of the first level.
    mults: channels of each level as multiples of it; from a level to the next the sides halve.
    depth: blocks of a level (the decoder's levels have one more).
    groups: of the group norms; it must divide all channels.
    attention: levels, from 0, whose blocks are followed by attention. Where an image of 128 pixels
      has 16 x 16 places, of four levels the last.
    codes: how many there are.
    code_width: numbers of each.
    quantize: False leaves the codes out: a plain autoencoder.
    fuse_levels: levels of the decoder that the skip reaches; () for no skip.
    code_layers, code_heads, code_dim: of a transformer that predicts the codes from the latent map,
      in place of taking the nearest ones; 0 layers for none. CodeFormer has 9, 8 and 512.
  """

  width: int = 64
  mults: tuple[int, ...] = (1, 2, 2, 4)
  depth: int = 2
  groups: int = 32
  attention: tuple[int, ...] = (3,)
  codes: int = 1024
  code_width: int = 256
  quantize: bool = True
  fuse_levels: tuple[int, ...] = ()
  code_layers: int = 0
  code_heads: int = 8
  code_dim: int = 512
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    self.check()
    sizes = dict(width=self.width, mults=self.mults, depth=self.depth, groups=self.groups,
                 attention=self.attention, dtype=self.dtype, param_dtype=self.param_dtype)
    self.encoder = Encoder(code_width=self.code_width, **sizes)
    self.decoder = Decoder(**sizes)
    self.to_image = vq_parts.conv(3, None, dtype=jnp.float32, param_dtype=self.param_dtype)
    if self.quantize:
      # Where the codes are drawn from does not matter much: see `Revive` of the task.
      init = nn.initializers.uniform(2.0 / self.codes)
      centred = lambda *args: init(*args) - 1.0 / self.codes
      self.codebook = self.param(
        "codebook", nn.with_logical_partitioning(centred, (None, None)),
        (self.codes, self.code_width), self.param_dtype)
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.fuse = {f"level_{i}": vq_parts.Fuse(self.groups, **types) for i in self.fuse_levels}
    if self.code_layers:
      self.code_transformer = vq_parts.CodeTransformer(
        self.codes, self.code_dim, self.code_layers, self.code_heads, **types)

  @property
  def factor(self) -> int:
    """How many times smaller a side of the latent map is than that of the image."""
    return 2 ** (len(self.mults) - 1)

  @property
  def multiple(self) -> int:
    """Sides of images must be a multiple of it, as of restoration networks."""
    return self.factor

  def __call__(
    self, image: Float[Array, "b y x 3"], w: Any = 0.0, train: bool = False
  ) -> tuple[Float[Array, "b y x 3"], dict[str, Any]]:
    """The image as the decoder draws it, float32, about 0..1.

    Args:
      image: in 0..1.
      w: how much of the encoder's features the decoder sees, 0 to 1, one number or (b,).
      train: nothing here depends on it.

    Returns:
      The image, and out: `latent` (b, h, w, d), what the encoder gives, float32; `features`, of
      each level of `fuse_levels`; with codes, `index` (b, h, w) and `vector` (b, h, w, d).
    """
    del train
    latent, features = self.encode(image)
    out = {"latent": latent, "features": features}
    if not self.quantize:
      return self.decode(latent, features, w), out
    codes = self.choose(latent)
    y = self.decode(vq_parts.straight_through(latent, codes.vector), features, w)
    return y, out | codes._asdict()

  def encode(self, image: Float[Array, "b y x 3"]):
    """The latent map (b, h, w, d), float32, and the features of the levels that the skip reaches.

    Raises:
      ValueError: a side of the image is no multiple of `factor`.
    """
    if image.shape[1] % self.factor or image.shape[2] % self.factor:
      raise ValueError(
        f"an image of {image.shape[1]} x {image.shape[2]} pixels cannot be halved "
        f"{len(self.mults) - 1} times: its sides must be multiples of {self.factor}.")
    latent, levels = self.encoder(image)
    return latent, {i: levels[i] for i in self.fuse_levels}

  def choose(self, latent: Float[Array, "b h w d"]) -> vq_parts.Codes:
    """The codes for a latent map: the transformer's likeliest, or without it the nearest."""
    if not self.code_layers:
      return self.nearest(latent)
    index = jnp.argmax(self.logits(latent), axis=-1).astype(jnp.int32)
    return vq_parts.Codes(index, vq_parts.take(self.codebook, index))

  def nearest(self, latent: Float[Array, "b h w d"]) -> vq_parts.Codes:
    """The code nearest to each vector."""
    return vq_parts.nearest(self.codebook, latent)

  def logits(self, latent: Float[Array, "b h w d"], temperature: float = 1.0):
    """(b, h, w, n): how likely each code is at each place, float32, unnormalised.

    The transformer's; without it, minus the squared distances over `temperature` (ours), through
    which the codes themselves learn nothing.
    """
    if self.code_layers:
      return self.code_transformer(latent)
    return -vq_parts.distances(jax.lax.stop_gradient(self.codebook), latent) / temperature

  def decode(
    self, vector: Float[Array, "b h w d"], features: dict[int, Any] | None = None, w: Any = 0.0
  ) -> Float[Array, "b y x 3"]:
    """Codes, or a latent map, as an image. With w = 0, known while tracing, no skip is computed."""
    return self.paint(self.draw(vector, features, w))

  def draw(
    self, vector: Float[Array, "b h w d"], features: dict[int, Any] | None = None, w: Any = 0.0
  ) -> Float[Array, "b y x c"]:
    """What the decoder's last convolution makes the image of; arguments as of `decode`."""
    if not self.fuse_levels or isinstance(w, (int, float)) and w == 0:
      return self.decoder(vector, lambda level, x: x)
    w = jnp.broadcast_to(jnp.asarray(w, jnp.float32), (vector.shape[0],))

    def let_in(level, x):
      if level not in self.fuse_levels:
        return x
      return self.fuse[f"level_{level}"](x, features[level], w)

    return self.decoder(vector, let_in)

  def paint(self, drawn: Float[Array, "b y x c"]) -> Float[Array, "b y x 3"]:
    """The image of what `draw` gives; computed in float32, as the image is."""
    return 0.5 * (self.to_image(drawn).astype(jnp.float32) + 1.0)

  def check(self):
    """Raises ValueError where fields do not fit each other."""
    levels, widths = range(len(self.mults)), [self.width * m for m in self.mults]
    if not self.mults or min(self.mults) < 1 or self.depth < 1:
      raise ValueError(f"mults={self.mults}, depth={self.depth}: expected at least one level, of "
                       "at least one block, and multiples of at least 1.")
    if wrong := [c for c in widths if c % self.groups]:
      raise ValueError(f"groups={self.groups} does not divide the {wrong[0]} channels of a level; "
                       "choose a divisor of all, or another width.")
    for name in ("attention", "fuse_levels"):
      if wrong := [i for i in getattr(self, name) if i not in levels]:
        raise ValueError(f"{name}={getattr(self, name)}: {wrong[0]} is no level; there are "
                         f"{len(levels)}, counted from 0.")
    if self.code_layers and not self.quantize:
      raise ValueError(f"code_layers={self.code_layers} with quantize=False: there are no codes to "
                       "predict; set code_layers=0.")
    if self.code_layers and (self.code_dim % 4 or self.code_dim % self.code_heads):
      raise ValueError(f"code_dim={self.code_dim}: expected a multiple of 4 and of "
                       f"code_heads={self.code_heads}.")


class Encoder(nn.Module):
  """Image -> latent map, and the features of every level. Fields: see `VQAutoencoder`."""

  width: int
  mults: tuple[int, ...]
  depth: int
  groups: int
  attention: tuple[int, ...]
  code_width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Float[Array, "b y x 3"]):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    block = lambda c, name: vq_parts.Block(c, self.groups, **types, name=name)
    attend = lambda name: vq_parts.Attention(self.groups, **types, name=name)
    x = (2.0 * image - 1.0).astype(self.dtype)
    x = vq_parts.conv(self.width, "conv_in", **types)(x)
    levels = []
    for level, mult in enumerate(self.mults):
      if level:
        x = vq_parts.Down(**types, name=f"down_{level}")(x)
      for i in range(self.depth):
        x = block(self.width * mult, f"block_{level}_{i}")(x)
        if level in self.attention:
          x = attend(f"attention_{level}_{i}")(x)
      levels.append(x)
    x = block(x.shape[-1], "middle_1")(x)
    x = block(x.shape[-1], "middle_2")(attend("middle_attention")(x))
    x = nn.swish(vq_parts.norm(self.groups, "norm_out", **types)(x))
    x = vq_parts.conv(self.code_width, "conv_out", **types)(x)
    return x.astype(jnp.float32), levels


class Decoder(nn.Module):
  """Latent map -> what the last convolution makes an image of. Fields: see `VQAutoencoder`."""

  width: int
  mults: tuple[int, ...]
  depth: int
  groups: int
  attention: tuple[int, ...]
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, vector: Float[Array, "b h w d"], let_in) -> Float[Array, "b y x c"]:
    """`let_in(level, x)` is applied after the blocks of each level."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    block = lambda c, name: vq_parts.Block(c, self.groups, **types, name=name)
    attend = lambda name: vq_parts.Attention(self.groups, **types, name=name)
    x = vq_parts.conv(self.width * self.mults[-1], "conv_in", **types)(vector.astype(self.dtype))
    x = block(x.shape[-1], "middle_1")(x)
    x = block(x.shape[-1], "middle_2")(attend("middle_attention")(x))
    for level in reversed(range(len(self.mults))):
      for i in range(self.depth + 1):
        x = block(self.width * self.mults[level], f"block_{level}_{i}")(x)
        if level in self.attention:
          x = attend(f"attention_{level}_{i}")(x)
      x = let_in(level, x)
      if level:
        x = vq_parts.Up(**types, name=f"up_{level}")(x)
    return nn.swish(vq_parts.norm(self.groups, "norm_out", **types)(x))
