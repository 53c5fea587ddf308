"""How is CLIP kept elsewhere? What its formats share: name tables, sizes, checks, half precision.

OpenAI's names are also those of open_clip's class `CLIP` and of UniQA; open_clip's `CustomTextCLIP`
has the same with `text.` before the text tower's, and transformers has its own. In all of them the
class token's position is the first row of the image's position table; ours is an array of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.convert import ours, siglip, tables
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors
from big_vision_ext.convert.tables import Rule

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# What CLIP's towers are, whatever their sizes; as `tasks.clip` has it.
IMAGE = dict(pool_type="tok", cls_posemb=True, pre_norm=True, patch_bias=False, head_bias=False,
             posemb_fit="stretch", act="quick_gelu", ln_eps=1e-5)  # fmt: skip
TEXT = dict(pool_type="eot", causal=True, head_bias=False, act="quick_gelu", ln_eps=1e-5)
# Width of a head in every published model.
HEAD_WIDTH = 64
# What a file of OpenAI's says beside its parameters, and buffers of other libraries.
IGNORE = ("input_resolution", "context_length", "vocab_size", r"(text\.)?attn_mask",
          r"(text|vision)_model\.embeddings\.position_ids")
_QKV = ("query", "key", "value")
# What is a matrix product with its bias, and so in half precision in OpenAI's files.
_PRODUCTS = ("embedding/kernel", "head/kernel", "query/kernel", "query/bias", "key/kernel",
             "key/bias", "value/kernel", "value/bias", "out/kernel", "out/bias", "Dense_0/kernel",
             "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias")  # fmt: skip


def openai(text: str = "") -> list[Rule]:
  """The table of OpenAI's names; `text` stands before those of the text tower."""
  return [
    _kernel("img/embedding", "visual.conv1", (3, 2, 0, 1), (2, 3, 1, 0)),
    *_embeddings("visual.class_embedding", "visual.positional_embedding"),
    *tables.norm("img/embedding_norm", "visual.ln_pre"),
    *_fused("img/Transformer", "visual.transformer", "visual.ln_post"),
    tables.same("img/head/kernel", "visual.proj"),
    tables.same("txt/Embed_0/embedding", f"{text}token_embedding.weight"),
    tables.same("txt/pos_embedding", f"{text}positional_embedding", squeeze=1),
    *_fused("txt/Encoder_0", f"{text}transformer", f"{text}ln_final"),
    tables.same("txt/head/kernel", f"{text}text_projection"),
    tables.same("t", "logit_scale", scalar=True),
    tables.same("b", "logit_bias", scalar=True),
  ]


def transformers() -> list[Rule]:
  """The table of `CLIPModel`."""
  image, words = "vision_model.embeddings", "text_model.embeddings"
  return [
    _kernel("img/embedding", f"{image}.patch_embedding", (3, 2, 0, 1), (2, 3, 1, 0)),
    *_embeddings(f"{image}.class_embedding", f"{image}.position_embedding.weight"),
    # Their spelling.
    *tables.norm("img/embedding_norm", "vision_model.pre_layrnorm"),
    *_split("img/Transformer", "vision_model", "post_layernorm"),
    _kernel("img/head", "visual_projection", (1, 0), (1, 0)),
    tables.same("txt/Embed_0/embedding", f"{words}.token_embedding.weight"),
    tables.same("txt/pos_embedding", f"{words}.position_embedding.weight", squeeze=1),
    *_split("txt/Encoder_0", "text_model", "final_layer_norm"),
    _kernel("txt/head", "text_projection", (1, 0), (1, 0)),
    tables.same("t", "logit_scale", scalar=True),
  ]


def load(rules: list[Rule], tensors: Tensors, model: Mapping[str, Any], where: Any,
         format: str) -> Tensors:
  """Their arrays under our names, all of both towers."""
  return tables.load(rules, ours.shapes("clip", model), tensors, str(where), format=format,
                     ignore=IGNORE)


def export(rules: list[Rule], weights: Any, format: str) -> Tensors:
  """Our arrays under their names."""
  return tables.export(rules, ours.shapes("clip", weights.model), weights.params, format=format)


def check(weights: Any, format: str, *, square: bool = True, own: Mapping[str, Any] | None = None,
          acts: Sequence[str] = ("quick_gelu", "gelu")) -> None:
  """Raises ConvertError if a format of CLIP cannot compute what these weights are for.

  Args:
    weights: a `Weights`.
    format: its name, for messages.
    square: whether it knows square images and patches only.
    own: settings of towers that it cannot have in another way, with their values; by default those
      that make them CLIP's.
    acts: activations that it has.
  """
  if weights.task != "clip":
    raise ConvertError(f"the format {format!r} holds CLIP models (task 'clip'), and these weights "
                       f"are of the task {weights.task!r}")
  for name, plain in (("image", IMAGE), ("text", TEXT)):
    spec = weights.model[name]
    wanted = {k: v for k, v in plain.items() if k not in ("act", "posemb_fit", "ln_eps")}
    wanted |= {"final_norm": True, "rep_size": 0, "num_cls": 1, "posemb_type": "learn"}
    wanted |= own or {}
    for key, value in wanted.items():
      if spec.get(key, value) != value:
        raise ConvertError(f"model.{name}.{key}={spec[key]!r}: the format {format!r} has no such "
                           f"thing, only {value!r}; export as npz")
    if (act := spec.get("act", "quick_gelu")) not in acts:
      raise ConvertError(f"model.{name}.act={act!r}: the format {format!r} has "
                         f"{' and '.join(acts)}")
  patch, size = siglip.sides(weights.model["image"])
  if square and (patch[0] != patch[1] or size[0] != size[1]):
    raise ConvertError(f"the format {format!r} has square images and patches only; this model has "
                       f"images of {size[0]}x{size[1]} pixels in patches of {patch[0]}x{patch[1]}")


def end_of_text(text: Mapping[str, Any]) -> int | None:
  """The id that a text tower reads a text at; None if that is the largest one, as for OpenAI."""
  found = text.get("eot_id")
  return None if found == text["vocab_size"] - 1 else found


def check_heads(weights: Any, format: str) -> None:
  """Raises ConvertError if heads are not as wide as OpenAI's, which a format does not say."""
  for name in ("image", "text"):
    spec = weights.model[name]
    if spec["num_heads"] * HEAD_WIDTH != spec["width"]:
      raise ConvertError(f"model.{name}.num_heads={spec['num_heads']} with width={spec['width']}: "
                         f"in the format {format!r} heads are {HEAD_WIDTH} wide")


def sizes_of(tensors: Tensors, where: Any, text: str = "") -> dict[str, Any]:
  """`config.model` of arrays under OpenAI's names; heads and activation are OpenAI's.

  Raises:
    ConvertError: the image tower is a ResNet, or its grid is not square.
  """
  size = lambda name, axes: siglip.size_of(tensors, name, axes, where)
  if "visual.layer1.0.conv1.weight" in tensors or "visual.attnpool.q_proj.weight" in tensors:
    raise ConvertError(f"{where}: its image tower is a ResNet (as of RN50, RN101, RN50x4, ...); "
                       "only those that are vision transformers are read (as of ViT-B-16)")
  width, _, patch, _ = size("visual.conv1.weight", 4)
  rows, shared = size("visual.positional_embedding", 2)[0], size("visual.proj", 2)[1]
  side = round((rows - 1) ** 0.5)
  if side * side != rows - 1:
    raise ConvertError(f"{where}: visual.positional_embedding has {rows} rows, expected one for "
                       "the class token and those of a square grid")
  vocab, words = size(f"{text}token_embedding.weight", 2)

  def tower(width, prefix):
    if width % HEAD_WIDTH:
      raise ConvertError(f"{where}: {prefix} is {width} wide, which is no number of heads of "
                         f"{HEAD_WIDTH}, as CLIP's are")
    blocks = f"{prefix}.resblocks.{{}}"
    return dict(width=width, depth=siglip.count(tensors, f"{blocks}.ln_1.weight"),
                mlp_dim=size(f"{blocks.format(0)}.mlp.c_fc.bias", 1)[0],
                num_heads=width // HEAD_WIDTH)

  image = tower(width, "visual.transformer") | IMAGE
  image |= dict(patch_size=patch, image_size=side * patch, num_classes=shared)
  said = tower(words, f"{text}transformer") | TEXT
  said |= dict(vocab_size=vocab, text_len=size(f"{text}positional_embedding", 2)[0], out_dim=shared)
  return {"image": image, "text": said, "bias_init": -10.0 if "logit_bias" in tensors else None}


def known_input(model: Mapping[str, Any]) -> dict[str, Any]:
  """What is known of the preprocessing of a model as `Weights.input` has it."""
  return {"image_size": model["image"]["image_size"], "mean": list(MEAN), "std": list(STD),
          "resize": "bicubic", "text_len": model["text"]["text_len"], "canonicalize": False}


def precision(tensors: Tensors) -> dict[str, str]:
  """What is to be said of a file in half precision, as `Weights.meta`; {} if it is in single."""
  found = [n for n, (_, dtype) in tensors.specs().items() if dtype == np.float16]
  if not found:
    return {}
  return {"precision": f"{len(found)} of {len(tensors)} arrays are float16 and kept as they are; "
                       "export --dtype float32 widens them"}


def round_to_fp16(weights: Any) -> Any:
  """Weights whose matrices went through half precision and are float32 again.

  What OpenAI's code and UniQA's do to weights before they use them: convolutions, products with
  their biases and both projections are rounded; norms, embeddings, positions and the temperature
  are not. With it, results can be compared with theirs bit by bit.
  """
  if weights.task != "clip":
    raise ConvertError(f"rounding to fp16 is of CLIP models, and these weights are of the task "
                       f"{weights.task!r}")
  params = Tensors(weights.params)
  rounded = {n: _rounded(params.lazy(n)) if n.endswith(_PRODUCTS) else params.lazy(n)
             for n in params}
  about = {"precision": "matrices rounded to float16, as OpenAI's code does"}
  return dataclasses.replace(weights, params=Tensors(rounded), meta={**weights.meta, **about})


def _rounded(x: Lazy) -> Lazy:
  return Lazy(x.shape, np.float32, lambda: x.read().astype(np.float16).astype(np.float32))


def _kernel(mine: str, theirs: str, out: Sequence[int], back: Sequence[int]) -> Rule:
  """A kernel without bias whose axes have another order there."""
  return Rule((f"{mine}/kernel",), (f"{theirs}.weight",),
              lambda xs: [xs[0].transpose(*out)], lambda ys, _: [ys[0].transpose(*back)])


def _embeddings(cls: str, positions: str) -> list[Rule]:
  """The class token, and positions whose first row is its: (1, 1, d), (1, t, d) <-> (1 + t, d)."""
  joint = tables.joined(("img/cls_pos_embedding", "img/pos_embedding"), positions, axis=1)
  token = Rule(("img/cls",), (cls,), lambda xs: [xs[0].reshape(-1)],
               lambda ys, shapes: [ys[0].reshape(*shapes[0])])
  rows = Rule(joint.ours, joint.theirs,
              lambda xs: [x.reshape(*x.shape[1:]) for x in joint.export(xs)],
              lambda ys, shapes: joint.load([ys[0].reshape(1, *ys[0].shape)], shapes))
  return [token, rows]


def _fused(mine: str, theirs: str, final: str) -> list[Rule]:
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.resblocks.{{}}"
  attention = f"{block}/{siglip.ATTENTION}"
  return [
    *tables.norm(f"{block}/LayerNorm_0", f"{layer}.ln_1"),
    *tables.heads_in(
      attention, _QKV, f"{layer}.attn.in_proj_weight", f"{layer}.attn.in_proj_bias"
    ),
    *tables.heads_out(f"{attention}/out", f"{layer}.attn.out_proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{layer}.ln_2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.c_fc"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.c_proj"),
    *tables.norm(f"{mine}/encoder_norm", final),
  ]


def _split(mine: str, theirs: str, final: str) -> list[Rule]:
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.encoder.layers.{{}}"
  attention, self_attn = f"{block}/{siglip.ATTENTION}", f"{layer}.self_attn"
  return [
    *tables.norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1"),
    *(rule for part, name in zip(_QKV, "qkv") for rule in tables.heads_in(
      attention, (part,), f"{self_attn}.{name}_proj.weight", f"{self_attn}.{name}_proj.bias")),
    *tables.heads_out(f"{attention}/out", f"{self_attn}.out_proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2"),
    *tables.norm(f"{mine}/encoder_norm", f"{theirs}.{final}"),
  ]
