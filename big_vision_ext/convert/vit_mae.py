"""How is a masked autoencoder kept elsewhere? Name tables of facebookresearch/mae and transformers.

Both have the class token's position as the first row of the position tables; ours is an array of
its own. The transformers library renamed its blocks in version 5: files of both kinds are read, and
the newer names are written, which both versions' `from_pretrained` take. timm has the encoder only,
under facebook's names. Weights published as MAE are CC-BY-NC 4.0.
"""

from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import ours, siglip, tables
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import Rule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OLD_DECODER = "decoder.decoder_encoder.layer"
_QKV = ("query", "key", "value")
# Of a block: norm before attention, q, k, v, output, norm before the MLP, its two layers.
_NEW = ("layernorm_before", "attention.q_proj", "attention.k_proj", "attention.v_proj",
        "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
_OLD = ("layernorm_before", "attention.attention.query", "attention.attention.key",
        "attention.attention.value", "attention.output.dense", "layernorm_after",
        "intermediate.dense", "output.dense")


def facebook() -> list[Rule]:
  """The table of facebookresearch/mae, whose queries, keys and values are one matrix."""
  return [
    *tables.conv("embedding", "patch_embed.proj"),
    tables.same("cls", "cls_token"),
    tables.joined(("cls_pos_embedding", "pos_embedding"), "pos_embed", axis=1),
    *_fused("Transformer", "blocks", "norm"),
    *_decoder("", lambda: _fused("Decoder", "decoder_blocks", "decoder_norm")),
  ]


def transformers(old: bool = False, decoder: str = "decoder.decoder_layers") -> list[Rule]:
  """The table of `ViTMAEForPreTraining`.

  Args:
    old: the names of versions before 5.
    decoder: where the decoder's blocks are. Version 5 saves under the old names, and has
      `OLD_DECODER` there: its renaming of "layers" takes part of "decoder_layers" with it.
  """
  names = _OLD if old else _NEW
  layers = "vit.encoder.layer" if old else "vit.layers"
  embeddings = "vit.embeddings"
  return [
    *tables.conv("embedding", f"{embeddings}.patch_embeddings.projection"),
    tables.same("cls", f"{embeddings}.cls_token"),
    tables.joined(
      ("cls_pos_embedding", "pos_embedding"), f"{embeddings}.position_embeddings", axis=1
    ),
    *_split("Transformer", layers, "vit.layernorm", names),
    *_decoder(
      "decoder.",
      lambda: _split("Decoder", decoder, "decoder.decoder_norm", names),
    ),
  ]


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


def _decoder(prefix: str, blocks) -> list[Rule]:
  return [
    *tables.linear("decoder_embed", f"{prefix}decoder_embed"),
    tables.same("mask_token", f"{prefix}mask_token"),
    tables.joined(("decoder_cls_pos_embedding", "decoder_pos_embedding"),
                  f"{prefix}decoder_pos_embed", axis=1),
    *blocks(),
    *tables.linear("decoder_pred", f"{prefix}decoder_pred"),
  ]


def _fused(mine: str, theirs: str, final: str) -> list[Rule]:
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.{{}}"
  attention = f"{block}/{siglip.ATTENTION}"
  return [
    *tables.norm(f"{block}/LayerNorm_0", f"{layer}.norm1"),
    *tables.heads_in(attention, _QKV, f"{layer}.attn.qkv.weight", f"{layer}.attn.qkv.bias"),
    *tables.heads_out(f"{attention}/out", f"{layer}.attn.proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{layer}.norm2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2"),
    *tables.norm(f"{mine}/encoder_norm", final),
  ]


def _split(mine: str, theirs: str, final: str, names: tuple[str, ...]) -> list[Rule]:
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.{{}}"
  attention = f"{block}/{siglip.ATTENTION}"
  before, *qkv, out, after, fc1, fc2 = (f"{layer}.{name}" for name in names)
  return [
    *tables.norm(f"{block}/LayerNorm_0", before),
    *(rule for part, name in zip(_QKV, qkv)
      for rule in tables.heads_in(attention, (part,), f"{name}.weight", f"{name}.bias")),
    *tables.heads_out(f"{attention}/out", out),
    *tables.norm(f"{block}/LayerNorm_1", after),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", fc1),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", fc2),
    *tables.norm(f"{mine}/encoder_norm", final),
  ]
