"""How is a masked autoencoder kept elsewhere? Name tables of facebookresearch/mae and transformers.

Its encoder has the names of `vit_tables`; here is the decoder. timm has the encoder only, under
facebook's names (`timm_encoders`). Weights published as MAE are CC-BY-NC 4.0.
"""

from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import ours, siglip, tables, vit_tables
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import Rule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OLD_DECODER = "decoder.decoder_encoder.layer"


def facebook() -> list[Rule]:
  """The table of facebookresearch/mae, whose queries, keys and values are one matrix."""
  decoder = vit_tables.fused("Decoder", "decoder_blocks", "decoder_norm")
  return [*vit_tables.facebook(), *_decoder("", decoder)]


def transformers(old: bool = False, decoder: str = "decoder.decoder_layers") -> list[Rule]:
  """The table of `ViTMAEForPreTraining`.

  Args:
    old: the names of versions before 5.
    decoder: where the decoder's blocks are. Version 5 saves under the old names, and has
      `OLD_DECODER` there: its renaming of "layers" takes part of "decoder_layers" with it.
  """
  blocks = vit_tables.split("Decoder", decoder, "decoder.decoder_norm", old=old)
  return [*vit_tables.transformers(old=old), *_decoder("decoder.", blocks)]


def load(tensors: Tensors, model: Mapping[str, Any], rules: list[Rule], where: Any,
         format: str) -> Tensors:
  """Their arrays under our names, all of a masked autoencoder."""
  return tables.load(rules, ours.shapes("mae", model), tensors, str(where), format=format)


def export(weights: Any, rules: list[Rule], format: str) -> Tensors:
  """Our arrays under their names.

  Raises:
    ConvertError: the model is none that these formats can hold.
  """
  check(weights, format)
  return tables.export(rules, ours.shapes("mae", weights.model), Tensors(weights.params),
                       format=format)


def check(weights: Any, format: str) -> None:
  """Raises ConvertError if the format has no such masked autoencoder."""
  if weights.task != "mae":
    raise ConvertError(f"the format {format!r} holds masked autoencoders (task 'mae'), and these "
                       f"weights are of the task {weights.task!r}")
  image = weights.model["image"]
  for key, plain in (("decoder", "self"), ("num_cls", 1), ("act", "gelu")):
    if image.get(key, plain) != plain:
      raise ConvertError(f"model.image.{key}={image[key]!r}: the format {format!r} has no such "
                         f"thing, only {plain!r}; export as npz")


def sizes_of(tensors: Tensors, where: Any) -> dict[str, Any]:
  """`config.model.image` of arrays under facebook's names; heads are those of published sizes."""
  size = lambda name, axes: siglip.size_of(tensors, name, axes, where)
  width, _, patch, _ = size("patch_embed.proj.weight", 4)
  side = round((size("pos_embed", 3)[1] - 1) ** 0.5)
  return dict(
    width=width, depth=siglip.count(tensors, "blocks.{}.norm1.weight"),
    mlp_dim=size("blocks.0.mlp.fc1.bias", 1)[0], num_heads=siglip.num_heads(width, where),
    patch_size=patch, image_size=side * patch, pool_type="tok", act="gelu",
    decoder_width=size("decoder_embed.bias", 1)[0],
    decoder_depth=siglip.count(tensors, "decoder_blocks.{}.norm1.weight"),
    decoder_mlp_dim=size("decoder_blocks.0.mlp.fc1.bias", 1)[0], decoder_heads=16,
  )


def mask_for(image: Mapping[str, Any], ratio: float = 0.75) -> dict[str, int]:
  """`config.model.mask` of a model whose library keeps a share of hidden patches."""
  h, w = ours.grid(image)
  return {"num_visible": int(h * w * (1 - ratio))}


def _decoder(prefix: str, blocks: list[Rule]) -> list[Rule]:
  return [
    *tables.linear("decoder_embed", f"{prefix}decoder_embed"),
    tables.same("mask_token", f"{prefix}mask_token"),
    tables.joined(("decoder_cls_pos_embedding", "decoder_pos_embedding"),
                  f"{prefix}decoder_pos_embed", axis=1),
    *blocks,
    *tables.linear("decoder_pred", f"{prefix}decoder_pred"),
  ]
