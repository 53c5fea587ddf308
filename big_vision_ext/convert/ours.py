"""Which arrays has a model, under which names and in which shapes? Said without building it.

The names are big_vision's (see `models/`), the blocks of an encoder one by one (`encoderblock_0`,
...). What is written here is what files are checked against; tests hold it against the models.
"""

from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import restoration_nets
from big_vision_ext.convert.lazy import ConvertError

Shapes = dict[str, tuple[int, ...]]

# Tasks whose weights can be written in some format.
TASKS = ("siglip", "clip", "ps3", "mae", "focusmim", "classify", "ijepa", "restore")
# Tasks whose arrays are not said here, as networks and towers of many kinds are in them: an
# export lists them itself, in `meta["arrays"]`. Only the format npz holds them.
LISTED = ("cdasr",)
# A vision transformer with its final norm and nothing else, as other libraries keep the encoder of
# a masked model. It is a start of training and no task; the names are those it has in `mae`.
ENCODER = "encoder"
# May be absent in a file of a pair of towers: not every library keeps them with the weights.
OPTIONAL = ("t", "b")


def shapes(task: str, model: Mapping[str, Any]) -> Shapes:
  """All arrays of a model, {name: shape}.

  Args:
    task: one of `TASKS`, or `ENCODER`.
    model: the task's settings with sizes written out: of `image` width, depth, mlp_dim, num_heads,
      patch_size and posemb_grid or image_size; of `text` the first four, vocab_size, text_len and,
      if it differs from the width of image vectors, out_dim; of PS3 also scales; of a classifier
      num_classes; of restoration `net`, and `seeds` if they are several. What has a default in the
      models has the same here. `text` may be None, for an image tower alone.

  Raises:
    ConvertError: another task, or a size that is not given.
  """
  if task not in (*TASKS, ENCODER):
    raise ConvertError(f"task {task!r} has no weight formats; expected one of {', '.join(TASKS)}")
  if task == "restore":
    return _restoration(model)
  image = _part(model, "image")
  alone = {"mae": _masked_autoencoder, "focusmim": _conv_autoencoder, ENCODER: vit_encoder}
  if task in alone:
    return alone[task](image)
  if task in ("classify", "ijepa"):
    return _classifier(model) if task == "classify" else _joint_embedding(model)
  out = _under("img/", image_tower(image))
  if task == "siglip" and "text" in model and model["text"] is None:
    return out
  text = _part(model, "text")
  vectors = image.get("num_classes") or image.get("rep_size") or pool_size(image)[0]
  vectors = image["width"] if vectors < 0 else vectors
  if task == "ps3":
    out |= _under("img/", _ps3(image)) | _under("prompt_proj/", _mlp(
        vectors, image["width"], image["width"], "fc1", "norm", "fc2"))
  out |= _under("txt/", text_tower({"out_dim": vectors, **text}))
  out["t"] = (1,)
  bias = model.get("bias_init", None if task == "clip" else -10.0)
  if task == "ps3" or bias is not None:
    out["b"] = (1,)
  return out


def image_tower(spec: Mapping[str, Any]) -> Shapes:
  """Arrays of a vision transformer; `spec` as in `shapes`."""
  d = _get(spec, "width")
  p = _pair(_get(spec, "patch_size"))
  pool = spec.get("pool_type", "map")
  out = {"embedding/kernel": (*p, 3, d)}
  out |= {"embedding/bias": (d,)} if spec.get("patch_bias", True) else {}
  if spec.get("posemb_type", "learn") == "learn":
    h, w = grid(spec)
    out["pos_embedding"] = (1, h * w, d)
  if pool == "tok":
    out["cls"] = (1, spec.get("num_cls", 1), d)
    out |= {"cls_pos_embedding": out["cls"]} if spec.get("cls_posemb", False) else {}
  out |= _norm("embedding_norm", d) if spec.get("pre_norm", False) else {}
  out |= _under("Transformer/", _encoder(spec, spec.get("final_norm", True)))
  if hidden := spec.get("adapter_hidden", 0):
    out |= _under("pool_adapter/", _adapter(d, hidden, spec.get("adapter_depth", 3),
                                            pool_size(spec)[0]))
  if pool == "map":
    out |= _under("MAPHead_0/", _map_head(*pool_size(spec)))
    d = pool_size(spec)[0]
  if rep := spec.get("rep_size", 0):
    rep = _get(spec, "width") if rep < 0 else rep
    out |= _dense("pre_logits", d, rep)
    d = rep
  if classes := spec.get("num_classes", 0):
    out |= _dense("head", d, classes, spec.get("head_bias", True))
  return out


def vit_encoder(spec: Mapping[str, Any]) -> Shapes:
  """Arrays of the encoder of a masked model or a classifier; class tokens have positions."""
  spec = {"pool_type": "tok", **spec}
  out = image_tower(spec)
  return out | ({"cls_pos_embedding": out["cls"]} if "cls" in out else {})


def text_tower(spec: Mapping[str, Any]) -> Shapes:
  """Arrays of a text transformer; `spec` as in `shapes`, with `out_dim` (0 for no head)."""
  d = _get(spec, "width")
  out = {"Embed_0/embedding": (_get(spec, "vocab_size"), d),
         "pos_embedding": (1, _get(spec, "text_len"), d)}
  out |= _under("Encoder_0/", _encoder(spec, True))
  if spec.get("pool_type", "last") == "map":
    out |= _under("MAPHead_0/", _map_head(d, spec["num_heads"], spec["mlp_dim"]))
  if spec.get("out_dim"):
    out |= _dense("head", d, spec["out_dim"], spec.get("head_bias", True))
  return out


def grid(spec: Mapping[str, Any]) -> tuple[int, int]:
  """Rows and columns of an image tower's position table."""
  if spec.get("posemb_grid") is not None:
    return _pair(spec["posemb_grid"])
  sides = zip(_pair(_get(spec, "image_size")), _pair(_get(spec, "patch_size")))
  h, w = (size // patch for size, patch in sides)
  return h, w


def pool_size(spec: Mapping[str, Any]) -> tuple[int, int, int]:
  """Width, heads and MLP width of an image tower's pooling head."""
  return (spec.get("pool_width") or _get(spec, "width"),
          spec.get("pool_heads") or _get(spec, "num_heads"),
          spec.get("pool_mlp_dim") or _get(spec, "mlp_dim"))


def _encoder(spec: Mapping[str, Any], final_norm: bool) -> Shapes:
  d, n, m = (_get(spec, key) for key in ("width", "num_heads", "mlp_dim"))
  out = {}
  for i in range(_get(spec, "depth")):
    out |= _under(f"encoderblock_{i}/", {
        **_norm("LayerNorm_0", d), **_attention(d, n), **_norm("LayerNorm_1", d),
        **_dense("MlpBlock_0/Dense_0", d, m), **_dense("MlpBlock_0/Dense_1", m, d)})
  return out | (_norm("encoder_norm", d) if final_norm else {})


def _map_head(d: int, n: int, m: int) -> Shapes:
  return {"probe": (1, 1, d), **_attention(d, n), **_norm("LayerNorm_0", d),
          **_dense("MlpBlock_0/Dense_0", d, m), **_dense("MlpBlock_0/Dense_1", m, d)}


def _attention(d: int, n: int) -> Shapes:
  name, out = "MultiHeadDotProductAttention_0", {}
  for part in ("query", "key", "value"):
    out |= {f"{name}/{part}/kernel": (d, n, d // n), f"{name}/{part}/bias": (n, d // n)}
  return out | {f"{name}/out/kernel": (n, d // n, d), f"{name}/out/bias": (d,)}


def _masked_autoencoder(spec: Mapping[str, Any]) -> Shapes:
  d, e, (h, w) = _get(spec, "width"), spec.get("decoder_width", 512), grid(spec)
  cls, depth = spec.get("num_cls", 1), spec.get("decoder_depth", 8)
  sizes = {"width": e, "depth": depth, "mlp_dim": spec.get("decoder_mlp_dim", 2048),
           "num_heads": spec.get("decoder_heads", 16)}
  out = vit_encoder({**spec, "pool_type": "tok"})
  out |= {"mask_token": (1, 1, e), "decoder_pos_embedding": (1, h * w, e)}
  out |= _dense("decoder_pred", e, _pair(_get(spec, "patch_size"))[0] ** 2 * 3)
  if spec.get("decoder", "self") == "self":
    out["decoder_cls_pos_embedding"] = (1, cls, e)
    return out | _dense("decoder_embed", d, e) | _under("Decoder/", _encoder(sizes, True))
  out |= _under("Decoder/", {"mix": (_get(spec, "depth") + 1, depth), **_norm("norm", e)})
  for i in range(depth):
    block = _encoder({**sizes, "depth": 1}, False)
    attention = _cross_attention(e, d, sizes["num_heads"])
    mine = {n.removeprefix("encoderblock_0/"): s for n, s in block.items()
            if "Attention" not in n}
    out |= _under(f"Decoder/block_{i}/", mine | attention)
    out |= _under("Decoder/", _norm(f"source_norm_{i}", d))
  return out


def _classifier(model: Mapping[str, Any]) -> Shapes:
  probe, classes = model.get("probe", False), _get(model, "num_classes")
  normed = probe or model.get("feature", "mean") == "cls"
  image = {**_part(model, "image"), "num_classes": 0, "final_norm": normed}
  d = _get(image, "width")
  out = vit_encoder(image) | ({} if normed else _norm("fc_norm", d))
  out |= {"head_norm/mean": (d,), "head_norm/var": (d,)} if probe else {}
  return out | _dense("head", d, classes)


def _restoration(model: Mapping[str, Any]) -> Shapes:
  """A network, or several of the same, whose arrays have an axis in front."""
  members = len(model.get("seeds", (0,)))
  front = (members,) if members > 1 else ()
  found = restoration_nets.shapes(_part(model, "net"))
  return {name: (*front, *shape) for name, shape in found.items()}


def _joint_embedding(model: Mapping[str, Any]) -> Shapes:
  encoder = vit_encoder({**_part(model, "image"), "pool_type": "none"})
  d, spec = _get(model["image"], "width"), predictor(model)
  out = _dense("embed", d, spec["width"]) | {"mask_token": (1, 1, spec["width"])}
  out |= _under("Transformer/", _encoder(spec, True)) | _dense("out", spec["width"], d)
  return encoder | _under("teacher/", encoder) | _under("predictor/", out)


def predictor(model: Mapping[str, Any]) -> dict[str, Any]:
  """Sizes of the predictor of the task "ijepa"."""
  sizes = {"width": 384, "depth": 12, "num_heads": 16, "mlp_dim": 1536}
  return sizes | dict(model.get("predictor") or {})


def conv_blocks(spec: Mapping[str, Any]) -> tuple[list[tuple[int, int, int]], ...]:
  """(channels in, channels out, stride) of each block of the task "focusmim": encoder, decoder."""
  widths, depth = stages(spec)
  down, at = [], 3
  for width in widths:
    down += [(at, width, 2), *[(width, width, 1)] * (depth - 1)]
    at = width
  return down, [(d, c, stride) for c, d, stride in reversed(down)]


def stages(spec: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
  """Widths of the stages of the task "focusmim", and how many blocks each has."""
  return tuple(spec.get("widths", (32, 64, 128))), spec.get("depth", 3)


def _conv_autoencoder(spec: Mapping[str, Any]) -> Shapes:
  out = {}
  for name, blocks in zip(("encoder", "decoder"), conv_blocks(spec)):
    for i, (c, d, _) in enumerate(blocks):
      convs = {"conv1": (3, 3, c, d), "conv2": (3, 3, d, d)}
      convs |= {"skip": (1, 1, c, d)} if c != d else {}
      for conv, shape in convs.items():
        at = f"{name}/block_{i}/{conv}"
        out |= {f"{at}/kernel": shape, f"{at}/bias": (d,)}
  return out


def _cross_attention(d: int, source: int, n: int) -> Shapes:
  out = {}
  for part, size in (("query", d), ("key", source), ("value", source)):
    out |= {f"attention/{part}/kernel": (size, n, d // n), f"attention/{part}/bias": (n, d // n)}
  return out | {"attention/out/kernel": (n, d // n, d), "attention/out/bias": (d,)}


def _ps3(spec: Mapping[str, Any]) -> Shapes:
  d, p = _get(spec, "width"), _pair(_get(spec, "patch_size"))[0]
  scales = _get(spec, "scales")
  n = len(scales) - 1
  seen = d * len(spec.get("select_layers", (0, 9, 18, 26)))
  out = {"prior_prompt": (d,)}
  out |= _under("selection_feature_proj/", _mlp(seen, seen, d * n, "fc1", "norm", "fc2"))
  out |= {f"pos_emb_residual_{i}": (1, (s // p) ** 2, d) for i, s in enumerate(scales[1:])}
  if spec.get("look_policy", False):
    maps = n if spec.get("selection_maps", "first") == "each" else 1
    out |= _under("later_looks/", _look_policy(d, spec.get("policy_hidden", 32), maps))
  if not spec.get("highres_branch", True):
    return out
  c, e = spec.get("selection_hidden", 512), spec.get("selection_out", 512)
  k = spec.get("selection_kernel", 28)
  branch = {"stem/kernel": (k, k, 3, c), "stem/bias": (c,), **_norm("stem_norm", c)}
  for i in range(spec.get("selection_depth", 3)):
    branch |= _under(f"block_{i}/", {
        "conv_dw/kernel": (7, 7, 1, c), "conv_dw/bias": (c,), **_norm("norm", c),
        **_dense("fc1", c, 4 * c), **_dense("fc2", 4 * c, c), "scale": (c,)})
  return (out | _under("highres_selection/", branch | _dense("out_proj", c, e))
          | _dense("prompt_proj_for_highres", d, e * n))


def _look_policy(d: int, h: int, maps: int) -> Shapes:
  convs = {"near/kernel": (3, 3, maps + 1 + h, h), "near/bias": (h,), "far/kernel": (3, 3, h, h),
           "far/bias": (h,), "out": (h, maps)}
  return (_norm("read_norm", d) | _dense("read", d, h) | _norm("ask_norm", d) | _dense("ask", d, h)
          | _dense("whole", h, h) | convs)


def _adapter(d: int, hidden: int, depth: int, out_dim: int) -> Shapes:
  out = _dense("fc1", d, hidden)
  for i in range(depth):
    out |= _norm(f"block_{i}/norm", hidden) | _dense(f"block_{i}/fc", hidden, hidden)
  return out | _norm("out_norm", hidden) | _dense("fc2", hidden, out_dim)


def _mlp(d: int, hidden: int, out_dim: int, first: str, middle: str, last: str) -> Shapes:
  return _dense(first, d, hidden) | _norm(middle, hidden) | _dense(last, hidden, out_dim)


def _dense(name: str, d: int, e: int, bias: bool = True) -> Shapes:
  return {f"{name}/kernel": (d, e)} | ({f"{name}/bias": (e,)} if bias else {})


def _norm(name: str, d: int) -> Shapes:
  return {f"{name}/scale": (d,), f"{name}/bias": (d,)}


def _under(prefix: str, found: Shapes) -> Shapes:
  return {prefix + name: shape for name, shape in found.items()}


def _pair(value: Any) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else tuple(value)


def _part(model: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  if not isinstance(model.get(name), Mapping):
    raise ConvertError(f"model.{name}={model.get(name)!r}: expected the settings of a tower")
  return model[name]


def _get(spec: Mapping[str, Any], key: str) -> Any:
  if spec.get(key) is None:
    raise ConvertError(f"the model's {key} is not given: the shapes of its weights are not known")
  return spec[key]
