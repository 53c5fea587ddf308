"""Which vision transformers have a name in timm, and which sizes stand behind it?

Those without class-token tricks, layer scale, registers or a norm before the first block: what
`models/vit.py` computes. Sizes were read from timm 1.0.15, the version that ps3-torch needs.
"""

import re
from typing import NamedTuple


class Sizes(NamedTuple):
  """Sizes of a trunk; `image_size` is that of the position table."""

  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  patch_size: int
  image_size: int
  act: str


_TINY, _S, _B = (192, 12, 3, 768), (384, 12, 6, 1536), (768, 12, 12, 3072)
_L, _SO = (1024, 24, 16, 4096), (1152, 27, 16, 4304)
_H, _G, _GOPT = (1280, 32, 16, 5120), (1408, 40, 16, 6144), (1536, 40, 16, 6144)

# The first of several names for the same sizes is the one to write.
VITS = {name: Sizes(*sizes, *rest) for name, sizes, *rest in (
    ("vit_so400m_patch14_siglip_384", _SO, 14, 384, "gelu"),
    ("vit_so400m_patch14_siglip_378", _SO, 14, 378, "gelu"),
    ("vit_so400m_patch14_siglip_224", _SO, 14, 224, "gelu"),
    ("vit_so400m_patch16_siglip_256", _SO, 16, 256, "gelu_tanh"),
    ("vit_so400m_patch16_siglip_384", _SO, 16, 384, "gelu_tanh"),
    ("vit_so400m_patch16_siglip_512", _SO, 16, 512, "gelu_tanh"),
    ("vit_base_patch16_siglip_224", _B, 16, 224, "gelu"),
    ("vit_base_patch16_siglip_256", _B, 16, 256, "gelu"),
    ("vit_base_patch16_siglip_384", _B, 16, 384, "gelu"),
    ("vit_base_patch16_siglip_512", _B, 16, 512, "gelu"),
    ("vit_base_patch32_siglip_256", _B, 32, 256, "gelu_tanh"),
    ("vit_large_patch16_siglip_256", _L, 16, 256, "gelu"),
    ("vit_large_patch16_siglip_384", _L, 16, 384, "gelu"),
    ("vit_large_patch16_siglip_512", _L, 16, 512, "gelu_tanh"),
    ("vit_giantopt_patch16_siglip_256", _GOPT, 16, 256, "gelu_tanh"),
    ("vit_giantopt_patch16_siglip_384", _GOPT, 16, 384, "gelu_tanh"),
    ("vit_tiny_patch16_224", _TINY, 16, 224, "gelu"),
    ("vit_tiny_patch16_384", _TINY, 16, 384, "gelu"),
    ("vit_small_patch8_224", _S, 8, 224, "gelu"),
    ("vit_small_patch16_224", _S, 16, 224, "gelu"),
    ("vit_small_patch16_384", _S, 16, 384, "gelu"),
    ("vit_small_patch32_224", _S, 32, 224, "gelu"),
    ("vit_small_patch32_384", _S, 32, 384, "gelu"),
    ("vit_base_patch8_224", _B, 8, 224, "gelu"),
    ("vit_base_patch16_224", _B, 16, 224, "gelu"),
    ("vit_base_patch16_384", _B, 16, 384, "gelu"),
    ("vit_base_patch16_gap_224", (768, 12, 16, 3072), 16, 224, "gelu"),
    ("vit_base_patch32_224", _B, 32, 224, "gelu"),
    ("vit_base_patch32_384", _B, 32, 384, "gelu"),
    ("vit_large_patch14_224", _L, 14, 224, "gelu"),
    ("vit_large_patch16_224", _L, 16, 224, "gelu"),
    ("vit_large_patch16_384", _L, 16, 384, "gelu"),
    ("vit_large_patch32_224", _L, 32, 224, "gelu"),
    ("vit_large_patch32_384", _L, 32, 384, "gelu"),
    ("vit_huge_patch14_224", _H, 14, 224, "gelu"),
    ("vit_huge_patch14_gap_224", _H, 14, 224, "gelu"),
    ("vit_huge_patch16_gap_448", _H, 16, 448, "gelu"),
    ("vit_giant_patch14_224", _G, 14, 224, "gelu"),
    ("vit_giant_patch16_gap_224", _G, 16, 224, "gelu"),
    ("vit_gigantic_patch14_224", (1664, 48, 16, 8192), 14, 224, "gelu"),
    ("test_vit", (64, 6, 2, 192), 16, 160, "gelu"),
)}
_OWN = re.compile(r"bve_vit_w(\d+)_d(\d+)_h(\d+)_m(\d+)_p(\d+)_i(\d+)_(gelu|gelu_tanh)")


def find(wanted: Sizes) -> str | None:
  """The name of these sizes, best with this image size too; None if timm has none."""
  fits = [n for n, s in VITS.items() if s._replace(image_size=0) == wanted._replace(image_size=0)]
  same_grid = [n for n in fits if _grid(VITS[n]) == _grid(wanted)]
  return next(iter(same_grid + fits), None)


def own_name(sizes: Sizes) -> str:
  """A name for sizes that have none in timm, which says them."""
  w, d, h, m, p, i, act = sizes
  return f"bve_vit_w{w}_d{d}_h{h}_m{m}_p{p}_i{i}_{act}"


def sizes_of(name: str) -> Sizes | None:
  """The sizes behind a name of timm's or of `own_name`; None for others."""
  # timm allows a tag of pretrained weights after a dot, and a source before a slash.
  plain = name.rsplit("/")[-1].split(".")[0]
  if plain in VITS:
    return VITS[plain]
  found = _OWN.fullmatch(plain)
  return found and Sizes(*map(int, found.groups()[:6]), found[7])


def nearest(wanted: Sizes) -> str:
  """The named vision transformer whose sizes differ least, in ratios, for messages."""
  def distance(sizes):
    pairs = zip(sizes[:5], wanted[:5])
    return sum(max(a / b, b / a) for a, b in pairs) + (sizes.act != wanted.act)
  return min(VITS, key=lambda name: distance(VITS[name]))


def registration(sizes: Sizes) -> str:
  """Python that gives timm the name `own_name(sizes)`."""
  name = own_name(sizes)
  # The MLP's width is int(width * mlp_ratio) there: half a unit more survives the rounding.
  return f'''
from timm.models import register_model
from timm.models.vision_transformer import _create_vision_transformer


@register_model
def {name}(pretrained=False, **kwargs):
  sizes = dict(
      patch_size={sizes.patch_size}, embed_dim={sizes.width}, depth={sizes.depth},
      num_heads={sizes.num_heads}, mlp_ratio={(sizes.mlp_dim + 0.5) / sizes.width!r},
      img_size={sizes.image_size}, class_token=False, global_pool="map", act_layer={sizes.act!r})
  return _create_vision_transformer("{name}", pretrained=pretrained, **{{**sizes, **kwargs}})
'''


def _grid(sizes: Sizes) -> int:
  return sizes.image_size // sizes.patch_size
