"""Where do weights come from, for whoever needs them: a run of ours, or a file in any format?

Everything that takes `--workdir D` or `--weights W`, and `config.init`, goes through here.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import convert, tasks
from big_vision_ext.convert import npz, ours
from big_vision_ext.convert.lazy import Lazy, Tensors, of
from big_vision_ext.core import checkpoint, initial, trees
from big_vision_ext.core import config as config_lib
from big_vision_ext.core.workdir import EVALUATION_FILE
from input_pipeline import input_config, labels, text

# What concerns the training of towers and not what they compute.
_TRAINING_FIELDS = ("scan", "remat_policy", "dtype", "param_dtype", "dropout", "drop_path",
                    "head_zeroinit", "pooled_only", "parent", "name")
# Written apart, and what concerns the training of the task.
_NOT_OF_MODELS = ("image", "text", "contrast", "surprise")
# Parameters that only train others.
_OF_TRAINING = ("surprise/",)
_TABLE = re.compile(r"(.*/)?(pos_embedding|pos_emb_residual_\d+)")


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, ready to be used.

  Attributes:
    task_name, model: `tasks.make(task_name, model)` builds the task.
    input: what is known of preprocessing; of a run its `config.input`.
    params: nested dicts of NumPy arrays, in the layout that `model` says; those of a file may be
      views of it.
    step: of the checkpoint; None for a file.
    source: the path.
    evals: evaluators of the run's config; {} for a file.
    meta: see `convert.Weights`.
  """

  task_name: str
  model: dict[str, Any]
  input: dict[str, Any]
  params: dict[str, Any]
  step: int | None
  source: str
  evals: dict[str, config_lib.Evaluation] = dataclasses.field(default_factory=dict)
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def load(source: str | os.PathLike, step: int | None = None) -> Loaded:
  """The model in a run's directory, a checkpoint's folder, or a file or folder of any format.

  Args:
    source: the path; for a run with config.ema, followed by `:ema`, for its moving average.
    step: which checkpoint of a run; default the latest.

  Raises:
    ValueError: nothing is there, it cannot be read, or it is not whole; the message says what.
  """
  if is_run(source):
    config, params, step = checkpoint.load_workdir(source, step)
    return Loaded(config.task, config.model, config.input, params, step, str(source), config.evals)
  weights = read(source, step)
  if not weights.task:
    raise convert.ConvertError(
        f"{source}: its arrays are not those of a whole model (a pair of towers, img/ and txt/, or "
        "a PS3 model), which is needed here; as a start of training they are fine (config.init)")
  if weights.task == ours.ENCODER:
    raise convert.ConvertError(
        f"{source}: holds an encoder alone, without decoder, predictor or head, and a whole model "
        "is needed here; as a start of training it is fine (config.init, e.g. "
        "configs/mim/finetune.py:init=...)")
  if weights.task == "siglip" and weights.model.get("text") is None:
    raise convert.ConvertError(f"{source}: holds an image tower alone and a pair of towers is "
                               "needed here; as a start of training it is fine (config.init)")
  params = {n: weights.params[n] for n in weights.params}
  return Loaded(weights.task, weights.model, weights.input,
                trees.nest(_with_scale(params, weights)), None, str(source), {}, weights.meta)


def read(source: str | os.PathLike, step: int | None = None) -> convert.Weights:
  """As `load`, but with parameters in the loop layout under slash names, as exports want them.

  The settings of a run's model are written out: sizes for variants, and every default.
  """
  if not is_run(source):
    if step is not None:
      raise convert.ConvertError(f"{source}: has no steps; --step is for the directory of a run")
    return _read_foreign(source)
  checkpoints, step = checkpoint.find(source, step)
  meta = checkpoints.meta(step)
  config = config_lib.resolve(meta["config"])
  params = {n: x for n, x in checkpoints.params(step).items() if not n.startswith(_OF_TRAINING)}
  params = npz.loop_layout(Tensors(params), str(source))
  model = describe(config.task, config.model)
  settings = config_lib.build(input_config.InputConfig, config.input, "config.input")
  seen = {k: getattr(settings, k) for k in ("image_size", "resize", "tokenizer", "text_len",
                                            "canonicalize")}
  seen |= {"eval_crop": settings.eval_crop} if settings.eval_crop else {}
  seen |= _class_names(settings)
  towers = model["image"] if "mean" in model.get("image", {}) else model
  seen |= {k: towers[k] for k in ("mean", "std") if k in towers}
  seen |= getattr(tasks.make(config.task, config.model), "normalisation", {})
  return convert.Weights(params, config.task, model, seen | _token_ids(seen),
                         _about_run(source, step, config, meta))


def loop_params(params: Any) -> Tensors:
  """Parameters in nested dicts as `read` gives them: slash names, blocks one by one."""
  return npz.loop_layout(Tensors(trees.flatten(jax.device_get(params))))


def is_run(source: str | os.PathLike) -> bool:
  """Whether a path is a run's directory, its checkpoints, or one of them."""
  path, _ = checkpoint.split_average(source)
  return ((path / checkpoint.FOLDER).is_dir() or path.name == checkpoint.FOLDER
          or path.name.isdigit() and path.parent.name == checkpoint.FOLDER)


def describe(task_name: str, model: Mapping[str, Any]) -> dict[str, Any]:
  """`config.model` with the sizes of variants and all defaults of the towers written out."""
  task = tasks.make(task_name, model)
  if task_name == "quality":
    # Of its towers, which are weights of their own, an export says only where they were.
    return {**config_lib.to_dict(task.config), "width": task.width}
  if task_name in ours.LISTED:
    return _without_training(config_lib.to_dict(task.config))
  if task_name not in ours.TASKS:
    raise convert.ConvertError(f"task {task_name!r} has no weight formats; expected one of "
                               f"{', '.join(ours.TASKS)}")
  if task_name == "restore":
    net = {k: v for k, v in _fields(task.net).items() if k != "scale"}
    config = config_lib.to_dict(task.config)
    return config | {"net": dict(name=task.spec.name, scale=task.spec.scale, fields=net)}
  image = _fields(task.vision)
  for key in getattr(task, "follows", ()):
    del image[key]
  out = {k: v for k, v in config_lib.to_dict(task.config).items() if k not in _NOT_OF_MODELS}
  if task_name != "ps3":
    # The task wants the size; the grid follows from it.
    image.pop("posemb_grid", None)
    image["image_size"] = task.image_size
  words = {"text": _fields(task.text)} if hasattr(task, "text") else {}
  return {"image": image, **words, **out}


def init_params(init: config_lib.Init, params: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
  """`params` with the values of other weights, matched by name, and where they are from.

  Both layouts of encoder blocks fit each other. Position tables of another size are resized if
  `init.resize_posemb` says so, the way the model itself does for images of another size.

  Args:
    init: `config.init`.
    params: our parameters, placed; those that `allow_missing` names keep these values.
    shardings: where each lives.

  Returns:
    The parameters, and what an export should tell of this start: path, format, licence, and the
    starts before it.

  Raises:
    ValueError: nothing is there, it cannot be read, or arrays are missing, extra or misshapen;
      they are listed by name.
  """
  source, origin = _open(init.path)
  source = initial.rename(source, init)
  names = {n: tuple(x.shape) for n, x in trees.flatten(params).items()}
  source = _in_layout_of(names, Tensors(source))
  source, odd = _fit_tables(source, names, init.resize_posemb)
  try:
    filled = initial.init_params(init, params, shardings, source)
  except checkpoint.CheckpointError as error:
    if not odd:
      raise
    raise checkpoint.CheckpointError(
        f"{error}\n{', '.join(odd)}: a table of positions for another number of tokens; "
        "config.init.resize_posemb=True resizes such tables, if their grids are square") from error
  return filled, origin


def _open(path: str) -> tuple[dict[str, Lazy], dict[str, Any]]:
  """Arrays under the names that they have there, and the origin that `init_params` returns."""
  if is_run(path):
    checkpoints, step = checkpoint.find(path)
    meta = checkpoints.meta(step)
    return ({n: of(x) for n, x in checkpoints.params(step).items()},
            {"path": str(path), "format": f"a run of big_vision_ext, step {step}",
             "licence": "that of its data and of what it began from",
             "init": meta.get("init") or []})
  weights = _read_foreign(path)
  params = Tensors(weights.params)
  origin = {"path": str(path), "format": weights.meta["format"],
            "licence": weights.meta["licence"],
            "init": weights.meta.get("init") or []}
  return {n: params.lazy(n) for n in params}, origin


def _read_foreign(path: str | os.PathLike) -> convert.Weights:
  path = pathlib.Path(path)
  if path.is_dir() and not any(path.iterdir()):
    raise convert.ConvertError(f"{path}: is empty; expected a run's directory, with "
                               f"{checkpoint.FOLDER}/ in it, or weights")
  weights = convert.read(path)
  known = weights.meta.get("licence") or licence(path)
  return dataclasses.replace(weights, meta={**weights.meta, "licence": known})


def licence(path: str | os.PathLike) -> str:
  """The licence that the model card beside some weights names; "unknown" if none does."""
  path = pathlib.Path(str(path).partition(".npz:")[0])
  card = (path if path.is_dir() else path.parent) / "README.md"
  with contextlib.suppress(OSError, UnicodeDecodeError):
    head = card.read_text(encoding="utf-8").split("\n---", 1)[0]
    if head.startswith("---"):
      found = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*)$", head, re.MULTILINE))
      names = [found[k].strip("\"' ") for k in ("license", "license_name") if k in found]
      if names:
        return ", ".join(names)
  return "unknown"


def _about_run(source, step, config, meta) -> dict[str, Any]:
  workdir, _ = checkpoint.split_average(source)
  while workdir.name == checkpoint.FOLDER or workdir.parent.name == checkpoint.FOLDER:
    workdir = workdir.parent
  data = config.input.get("data")
  names = sorted(data) if isinstance(data, Mapping) else [pathlib.Path(str(data)).name]
  about = {"name": workdir.name, "step": step, "examples": step * config.batch_size,
           "data": ", ".join(names), "init": _flat_starts(meta.get("init") or [])}
  if not about["init"]:
    about["init"] = [{"path": config.init.path, "licence": "unknown"}] if config.init else []
    about["from_scratch"] = not (config.init or config.resume)
  with contextlib.suppress(OSError, ValueError):
    metrics = json.loads((workdir / EVALUATION_FILE).read_text())
    if metrics.get("step") == step:
      about["metrics"] = {k: v for k, v in metrics.items() if k != "step"}
  return about


def _flat_starts(starts: list[dict]) -> list[dict]:
  """A chain of starts, each begun from the next, as one list."""
  out = []
  for start in starts:
    out.append({k: v for k, v in start.items() if k != "init"})
    out += _flat_starts(start.get("init") or [])
  return out


def _class_names(settings: input_config.InputConfig) -> dict[str, list[str]]:
  """The names of the classes in their order, if no split has to be read through for them."""
  listed = not isinstance(settings.classes, str) or settings.classes.endswith(".txt")
  if not settings.num_classes or not listed:
    return {}
  try:
    return {"classes": list(labels.classes(settings))}
  except input_config.InputError as error:
    logging.warning("%s The names of the classes are not exported.", error)
    return {}


def _token_ids(seen: Mapping[str, Any]) -> dict[str, int]:
  """The ids that end and pad a caption, as files of tokenizers do not always tell them."""
  try:
    found = text.make_tokenizer(seen["tokenizer"])
  except text.TokenizerError as error:
    logging.warning("%s No tokenizer is exported.", error)
    return {}
  return {"pad_id": found.pad_id, "eos_id": found.eos_id}


def _without_training(tree: Any) -> Any:
  """Settings without those of layout and precision, at any depth: exports have one layout."""
  if isinstance(tree, Mapping):
    return {k: _without_training(v) for k, v in tree.items()
            if k not in ("scan", "remat_policy", "dtype", "param_dtype")}
  return tree


def _fields(module: Any) -> dict[str, Any]:
  return {f.name: config_lib.to_dict(getattr(module, f.name)) for f in dataclasses.fields(module)
          if f.name not in _TRAINING_FIELDS}


def _with_scale(params: dict[str, np.ndarray], weights: convert.Weights) -> dict[str, np.ndarray]:
  """Temperature and bias at their initial values, where a format did not keep them."""
  start = {"t": math.log(weights.model.get("temperature_init", 10.0)),
           "b": weights.model.get("bias_init", -10.0)}
  for name in ours.OPTIONAL:
    wanted = start[name] is not None and any(n.startswith("txt/") for n in params)
    if name not in params and wanted:
      params[name] = np.full((1,), start[name], np.float32)
  return params


def _in_layout_of(names: Mapping[str, tuple], source: Tensors) -> Tensors:
  """Blocks of encoders stacked where ours are, and one by one where ours are."""
  stacked = {n.split("encoderblock/")[0] for n in names if "/encoderblock/" in f"/{n}"}
  return npz.scan_layout(npz.loop_layout(source), only=lambda prefix: prefix in stacked)


def _fit_tables(source: Tensors, names: Mapping[str, tuple],
                resize: bool) -> tuple[dict[str, Lazy], list[str]]:
  """Source with resized position tables, and the names of those that still do not fit."""
  out = {n: source.lazy(n) for n in source}
  odd = []
  for name, shape in names.items():
    found = _TABLE.fullmatch(name)
    # A text's positions are no grid.
    if not found or name not in out or f"{found[1] or ''}Embed_0/embedding" in names:
      continue
    x = out[name]
    if x.shape == shape or len(x.shape) != 3 or x.shape[2] != shape[2]:
      continue
    old, new = math.isqrt(x.shape[1]), math.isqrt(shape[1])
    if not resize or old * old != x.shape[1] or new * new != shape[1]:
      odd.append(name)
      continue
    out[name] = Lazy(shape, np.float32, lambda x=x, old=old, new=new: resize_table(x, old, new))
  return out, odd


def resize_table(table: Any, old: int, new: int) -> np.ndarray:
  """A position table (1, old * old, d) for another square grid (1, new * new, d), float32.

  Antialiased bicubic (A=-0.5): what `models.vit.ViT.posemb` does for images of another size.
  """
  grid = jnp.asarray(np.asarray(table), jnp.float32).reshape(old, old, -1)
  grid = jax.image.resize(grid, (new, new, grid.shape[-1]), method="cubic", antialias=True)
  return np.asarray(grid).reshape(1, new * new, -1)
