"""Which class is an image of? A pretrained encoder with a linear head, for fine-tuning and probing.

The encoder's parameters have the names that they have in `models.mae.MaskedAutoencoder`, so that a
run or a file of a masked autoencoder is a start without renaming.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import blocks, vit

FEATURES = ("mean", "cls")
# How much of a new batch's statistics the running ones take in (PyTorch's).
_MOMENTUM = 0.1


class Classifier(vit.ViT):
  """Encoder, feature, norm, head. Fields of `vit.ViT` hold for the encoder.

  He et al. 2022, sec. A.1. Fine-tuning ("mean"): the patch tokens of the last block are averaged
  and normed by a `fc_norm` of their own, in place of the encoder's norm. Class tokens are there all
  the same: blocks attend to them. "cls" takes the mean of the normed class tokens. An encoder
  without any, as I-JEPA's, has `pool_type="none"`.

  Attributes:
    feature: "mean" or "cls".
    classes: outputs of the head.
    head_std: deviation of the head's initial kernel.
    probe: a linear probe: the encoder is not trained, its own norm stays, and the feature goes
      through `BatchNorm`.
  """

  pool_type: str = "tok"
  posemb_init: str = "sincos2d_mae"
  patch_init: str = "xavier"
  fused_qkv_init: bool = True
  act: str = "gelu"
  classes: int = 1000
  feature: str = "mean"
  head_std: float = 2e-5
  probe: bool = False

  def setup(self):
    super().setup()
    if self.pool_type not in ("tok", "none") or self.num_classes or self.rep_size:
      raise ValueError(
        f"pool_type={self.pool_type!r}, num_classes={self.num_classes}, rep_size={self.rep_size}: "
        "a classifier's encoder has class tokens (pool_type='tok') or none ('none'), and its head "
        "is its own; set `classes`."
      )
    features = FEATURES if self.pool_type == "tok" else ("mean",)
    if self.feature not in features or self.final_norm == self.has_fc_norm:
      raise ValueError(
        f"feature={self.feature!r}, final_norm={self.final_norm}: with pool_type="
        f"{self.pool_type!r} expected a feature of {features}, here with "
        f"final_norm={not self.has_fc_norm}."
      )
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.pool_type == "tok":
      self.cls_pos_embedding = self._vectors(
        "cls_pos_embedding", self.num_cls, nn.initializers.zeros_init()
      )
    if self.has_fc_norm:
      self.fc_norm = blocks.layer_norm(None, self.ln_eps, **types)
    if self.probe:
      self.head_norm = BatchNorm()
    normal = lambda **_: nn.initializers.normal(self.head_std)
    self.head = blocks.Projection((self.classes,), ("embed", "out"), kernel_init=normal, **types)

  @property
  def has_fc_norm(self) -> bool:
    """Whether the mean of tokens is normed, and not each token."""
    return self.feature == "mean" and not self.probe

  def __call__(self, image: Float[Array, "b y x c"], train: bool = False):
    """Normalised images -> logits (b, n), float32, and out.

    Args:
      image: pixels, normalised as in pretraining.
      train: leave out branches (`drop_path`) of an encoder that is trained; take the statistics of
        the batch where there is a `BatchNorm`. Needs a key "dropout".

    Returns:
      Logits, and out: `feature` (b, d), before the probe's norm, and for a probe in training
      `statistics`, what its running statistics become.
    """
    y, out = self.encode(self.embed(image), deterministic=not train or self.probe)
    if self.feature == "cls":
      x = self.pool(y)
    else:
      first = self.num_cls if self.pool_type == "tok" else 0
      x = y[:, first:].astype(jnp.float32).mean(axis=1).astype(y.dtype)
    if self.has_fc_norm:
      x = self.fc_norm(x)
    out["feature"] = x
    if self.probe:
      x, statistics = self.head_norm(jax.lax.stop_gradient(x), train)
      out |= {"statistics": statistics} if train else {}
    return self.head(x).astype(jnp.float32), out

  def embed(self, image: Float[Array, "b y x c"]) -> Float[Array, "b t d"]:
    """As `ViT.embed`, with the positions of class tokens."""
    x, n = super().embed(image), self.num_cls
    if self.pool_type != "tok":
      return x
    return jnp.concatenate([x[:, :n] + self.cls_pos_embedding.astype(x.dtype), x[:, n:]], axis=1)


class BatchNorm(nn.Module):
  """(x - mean) / sqrt(var + eps), without scale and shift; float32.

  In training with mean and biased variance of the global batch, however it is cut. Otherwise with
  the running ones, which are parameters, `mean` and `var`: in training what they become is returned
  (0.9 of the old and 0.1 of the batch's, whose variance is the unbiased one there; PyTorch's).
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(
    self, x: Float[Array, "b d"], train: bool
  ) -> tuple[Float[Array, "b d"], dict[str, Any]]:
    x = x.astype(jnp.float32)
    old = {
      "mean": self.param("mean", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32),
      "var": self.param("var", nn.initializers.ones_init(), x.shape[-1:], jnp.float32),
    }
    if not train:
      return (x - old["mean"]) * jax.lax.rsqrt(old["var"] + self.eps), old
    if len(x) < 2:
      raise ValueError("a batch of one image has no statistics: batch_size must be at least 2.")
    mean = x.mean(axis=0)
    var = jnp.mean((x - mean) ** 2, axis=0)
    seen = {"mean": mean, "var": var * (len(x) / (len(x) - 1))}
    new = jax.tree.map(lambda a, b: a + _MOMENTUM * (b - a), old, seen)
    return (x - mean) * jax.lax.rsqrt(var + self.eps), jax.lax.stop_gradient(new)
