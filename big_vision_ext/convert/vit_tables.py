"""What do PyTorch libraries call the parts of a vision transformer? Name tables of encoders.

Two ways: facebook's and timm's, with queries, keys and values in one matrix, and those of the
transformers library, which renamed its blocks in version 5: files of both kinds are read, and the
newer names are written, which both versions' `from_pretrained` take. Both libraries have the class
token's position as the first row of the position table; ours is an array of its own.
"""

from big_vision_ext.convert import siglip, tables
from big_vision_ext.convert.tables import Rule

_QKV = ("query", "key", "value")
# Of a block: norm before attention, q, k, v, output, norm before the MLP, its two layers.
_NEW = ("layernorm_before", "attention.q_proj", "attention.k_proj", "attention.v_proj",
        "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
_OLD = ("layernorm_before", "attention.attention.query", "attention.attention.key",
        "attention.attention.value", "attention.output.dense", "layernorm_after",
        "intermediate.dense", "output.dense")


def facebook(mine: str = "", theirs: str = "", *, cls: bool = True) -> list[Rule]:
  """An encoder as facebookresearch's repositories and timm have it.

  Args:
    mine, theirs: prefixes of the names, with their slash and dot.
    cls: whether there is a class token.
  """
  return [
    *tables.conv(f"{mine}embedding", f"{theirs}patch_embed.proj"),
    *_positions(mine, f"{theirs}cls_token", f"{theirs}pos_embed", cls),
    *fused(f"{mine}Transformer", f"{theirs}blocks", f"{theirs}norm"),
  ]


def transformers(mine: str = "", theirs: str = "vit.", *, cls: bool = True,
                 old: bool = False) -> list[Rule]:
  """An encoder as `ViTModel` and its relatives have it; `old`: the names of versions before 5."""
  embeddings = f"{theirs}embeddings"
  layers = f"{theirs}encoder.layer" if old else f"{theirs}layers"
  return [
    *tables.conv(f"{mine}embedding", f"{embeddings}.patch_embeddings.projection"),
    *_positions(mine, f"{embeddings}.cls_token", f"{embeddings}.position_embeddings", cls),
    *split(f"{mine}Transformer", layers, f"{theirs}layernorm", old=old),
  ]


def fused(mine: str, theirs: str, final: str) -> list[Rule]:
  """Blocks and final norm, with queries, keys and values in one matrix."""
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


def split(mine: str, theirs: str, final: str, *, old: bool = False) -> list[Rule]:
  """Blocks and final norm, with a matrix each for queries, keys and values."""
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.{{}}"
  attention = f"{block}/{siglip.ATTENTION}"
  before, *qkv, out, after, fc1, fc2 = (f"{layer}.{name}" for name in (_OLD if old else _NEW))
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


def _positions(mine: str, token: str, table: str, cls: bool) -> list[Rule]:
  if not cls:
    return [tables.same(f"{mine}pos_embedding", table)]
  return [tables.same(f"{mine}cls", token),
          tables.joined((f"{mine}cls_pos_embedding", f"{mine}pos_embedding"), table, axis=1)]
