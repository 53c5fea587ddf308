"""ps3-torch's names and layouts in ours, by hand: independent of the tables in `convert`.

All maps are linear and keep every number, so gradients go the same way as weights.
"""

import numpy as np


def tree(weights, *, heads: int, pool_heads: int, text_heads: int) -> dict:
  """Parameters of the task "ps3" (loop layout) from tensors by ps3-torch's names.

  Raises:
    ValueError: a tensor has no place in the tree.
  """
  taken = _Taken(weights)
  out = {
    "img": _vision(taken.sub("vision_model."), heads, pool_heads),
    "txt": _text(taken.sub("text_model."), text_heads),
    "prompt_proj": _normed_mlp(taken.sub("text_model.prompt_proj.")),
    "t": taken["logit_scale"].reshape(1),
    "b": taken["logit_bias"].reshape(1),
  }
  if left := sorted(set(weights) - taken.seen):
    raise ValueError(f"Not taken over: {left}")
  return out


class _Taken:
  """Tensors by name, and which of them were asked for."""

  def __init__(self, weights, prefix="", seen=None):
    self.weights, self.prefix = weights, prefix
    self.seen = set() if seen is None else seen

  def sub(self, prefix):
    return _Taken(self.weights, self.prefix + prefix, self.seen)

  def __contains__(self, name):
    return self.prefix + name in self.weights

  def __getitem__(self, name):
    self.seen.add(self.prefix + name)
    return self.weights[self.prefix + name]

  def each(self, pattern):
    """The children `pattern.format(i)` for i = 0, 1, ... as far as there are any."""
    count = 0
    while any(k.startswith(self.prefix + pattern.format(count)) for k in self.weights):
      yield self.sub(pattern.format(count))
      count += 1


def _linear(w):
  return {"kernel": w["weight"].T, "bias": w["bias"]}


def _norm(w):
  return {"scale": w["weight"], "bias": w["bias"]}


def _conv(w):
  return {"kernel": w["weight"].transpose(2, 3, 1, 0), "bias": w["bias"]}


def _mlp(w, first="fc1.", second="fc2."):
  return {"Dense_0": _linear(w.sub(first)), "Dense_1": _linear(w.sub(second))}


def _normed_mlp(w):
  fc1, fc2 = _linear(w.sub("fc1.")), _linear(w.sub("fc2."))
  return {"fc1": fc1, "norm": _norm(w.sub("norm.")), "fc2": fc2}


def _into_heads(weight, bias, heads):
  return {"kernel": weight.T.reshape(weight.shape[1], heads, -1), "bias": bias.reshape(heads, -1)}


def _out_of_heads(w, heads):
  kernel = w["weight"].T
  return {"kernel": kernel.reshape(heads, -1, kernel.shape[1]), "bias": w["bias"]}


def _attention(weight, bias, out, heads):
  parts = zip(("query", "key", "value"), np.split(weight, 3), np.split(bias, 3))
  into = {name: _into_heads(w, b, heads) for name, w, b in parts}
  return into | {"out": _out_of_heads(out, heads)}


def _vision(w, heads, pool_heads):
  trunk = w.sub("trunk.")
  out = {
    "prior_prompt": w["prior_prompt"],
    "pos_embedding": trunk["pos_embed"],
    "embedding": _conv(trunk.sub("patch_embed.proj.")),
    "Transformer": {
      f"encoderblock_{i}": {
        "LayerNorm_0": _norm(b.sub("norm1.")),
        "LayerNorm_1": _norm(b.sub("norm2.")),
        "MlpBlock_0": _mlp(b.sub("mlp.")),
        "MultiHeadDotProductAttention_0": _attention(
          b["attn.qkv.weight"], b["attn.qkv.bias"], b.sub("attn.proj."), heads
        ),
      }
      for i, b in enumerate(trunk.each("blocks.{}."))
    },
    "MAPHead_0": _map_head(trunk.sub("attn_pool."), pool_heads),
    "selection_feature_proj": _normed_mlp(w.sub("selection_feature_proj.")),
    "highres_selection": _highres(w.sub("highres_selection_feature_module.")),
    "prompt_proj_for_highres": _linear(w.sub("prompt_proj_for_highres.")),
  }
  if "norm.weight" in trunk:
    out["Transformer"]["encoder_norm"] = _norm(trunk.sub("norm."))
  for i, table in enumerate(w.each("pos_emb_residual.{}")):
    out[f"pos_emb_residual_{i}"] = table[""]
  if "siglip_proj.fc1.weight" in trunk:
    out["pool_adapter"] = _adapter(trunk.sub("siglip_proj."))
  return out


def _map_head(w, heads):
  (key, value), (key_bias, value_bias) = np.split(w["kv.weight"], 2), np.split(w["kv.bias"], 2)
  return {
    "probe": w["latent"],
    "LayerNorm_0": _norm(w.sub("norm.")),
    "MlpBlock_0": _mlp(w.sub("mlp.")),
    "MultiHeadDotProductAttention_0": {
      "query": _into_heads(w["q.weight"], w["q.bias"], heads),
      "key": _into_heads(key, key_bias, heads),
      "value": _into_heads(value, value_bias, heads),
      "out": _out_of_heads(w.sub("proj."), heads),
    },
  }


def _highres(w):
  out = {
    "stem": _conv(w.sub("stem.0.")),
    "stem_norm": _norm(w.sub("stem.1.")),
    "out_proj": {"kernel": w["out_proj.weight"][:, :, 0, 0].T, "bias": w["out_proj.bias"]},
  }
  for i, b in enumerate(w.each("blocks.{}.")):
    out[f"block_{i}"] = {
      "conv_dw": _conv(b.sub("conv_dw.")),
      "norm": _norm(b.sub("norm.")),
      "fc1": _linear(b.sub("mlp.fc1.")),
      "fc2": _linear(b.sub("mlp.fc2.")),
      "scale": b["weight"],
    }
  return out


def _adapter(w):
  out = {
    "fc1": _linear(w.sub("fc1.")),
    "out_norm": _norm(w.sub("final.0.")),
    "fc2": _linear(w.sub("final.2.")),
  }
  for i, b in enumerate(w.each("blocks.{}.")):
    out[f"block_{i}"] = {"norm": _norm(b.sub("0.")), "fc": _linear(b.sub("2."))}
  return out


def _text(w, heads):
  return {
    "Embed_0": {"embedding": w["token_embedding.weight"]},
    "pos_embedding": w["positional_embedding"][None],
    "Encoder_0": {
      "encoder_norm": _norm(w.sub("ln_final.")),
    }
    | {
      f"encoderblock_{i}": {
        "LayerNorm_0": _norm(b.sub("ln_1.")),
        "LayerNorm_1": _norm(b.sub("ln_2.")),
        "MlpBlock_0": _mlp(b.sub("mlp."), "c_fc.", "c_proj."),
        "MultiHeadDotProductAttention_0": _attention(
          b["attn.in_proj_weight"], b["attn.in_proj_bias"], b.sub("attn.out_proj."), heads
        ),
      }
      for i, b in enumerate(w.each("transformer.resblocks.{}."))
    },
    "head": _linear(w.sub("text_projection.")),
  }
