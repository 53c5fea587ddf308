"""How does the encoder leave this project? As StableHLO that any jax runs, without our code.

An artefact is a folder of three files:

- `encoder.stablehlo`: the program, serialised by `jax.export`, for several platforms and any batch;
- `params.npz`: its parameters under their slash names (bfloat16 as "V2", which NumPy has no name
  for). They are beside the program and not in it: a serialised program may have at most 2 GiB, and
  the same parameters serve programs of several budgets;
- `encoder.json`: versions, platforms, inputs, outputs and preprocessing.

Without this project, and with parameters in float32, this is all it takes:

    from jax import export
    program = export.deserialize(open("E/encoder.stablehlo", "rb").read())
    out = program.call(dict(numpy.load("E/params.npz")), image, text)

`image` is uint8 (b, height, width, 3), resized as `encoder.json` says and not normalised; `text` is
int32 ids (b, length), and left out in a program without prompts.
"""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from jax import export

from big_vision_ext import encoding, features, loaded_model, tasks
from big_vision_ext.core import trees
from big_vision_ext.models import attention

FORMAT, VERSION = "bve-stablehlo", 1
PLATFORMS = ("cpu", "tpu", "cuda")
PROGRAM, PARAMS, DESCRIPTION = "encoder.stablehlo", "params.npz", "encoder.json"


class ArtefactError(ValueError):
  """A folder that is no exported encoder, or an input or setting that does not fit one."""


def export_encoder(
    loaded: Any, out: str | os.PathLike, platforms: Sequence[str] = PLATFORMS, *,
    prompt: bool = True, size: tuple[int, int] | None = None,
    num_looks: int | Literal["all"] | None = 1, num_tokens: int | None = None,
    only_first_scales: int | None = None, overwrite: bool = False,
) -> list[pathlib.Path]:
  """Writes an encoder as an artefact.

  Args:
    loaded: weights, as from `weights.load` (of a task with the output "encode").
    out: folder to write to.
    platforms: those the program is lowered for; at least one of `PLATFORMS`, "rocm" as well.
    prompt: whether the program takes texts (top-down) or not (bottom-up).
    size: height and width in pixels of its images; default: the square of the largest scale.
    num_looks, num_tokens, only_first_scales: the budget, as of `encoding.Encoder`.
    overwrite: replace an artefact that is there.

  Returns:
    The files written.

  Raises:
    ArtefactError: the folder is not empty, or the weights or a setting do not fit.
  """
  out = pathlib.Path(out)
  check_target(out, overwrite)
  unknown = set(platforms) - {*PLATFORMS, "rocm"}
  if unknown or not platforms:
    raise ArtefactError(f"platforms={list(platforms)}: expected some of {', '.join(PLATFORMS)}")
  task = tasks.make(loaded.task_name, loaded.model)
  if "encode" not in task.outputs:
    raise ArtefactError(f"{loaded.source} holds weights of task {loaded.task_name!r}; only those "
                        "of task 'ps3' can be exported as an encoder")
  size = tuple(size or (task.image_size,) * 2)
  if len(size) != 2 or min(size) < 1:
    raise ArtefactError(f"size={size}: expected height and width in pixels")
  limits = encoding.budget(task, num_looks, num_tokens, only_first_scales)
  params = {n: np.asarray(x) for n, x in trees.flatten(loaded.params).items()}
  batch = export.symbolic_shape("b")[0]
  shape = jax.ShapeDtypeStruct
  inputs = {"image": shape((batch, *size, 3), np.uint8)}
  if prompt:
    inputs["text"] = shape((batch, task.text.text_len), np.int32)
  specs = {n: shape(x.shape, x.dtype) for n, x in params.items()}
  with attention.portable():
    exported = export.export(jax.jit(program(task, limits)), platforms=tuple(platforms))(
        specs, *inputs.values())
  names = sorted(jax.tree.unflatten(exported.out_tree, exported.out_avals))
  description = {
      "format": FORMAT, "version": VERSION, "made_with": _versions(),
      "calling_convention_version": exported.calling_convention_version,
      "platforms": list(exported.platforms), "task": loaded.task_name,
      "source": {"weights": str(loaded.source), "step": loaded.step}, "budget": limits,
      "params": {n: _spec(x) for n, x in specs.items()},
      "inputs": {n: _spec(x) for n, x in inputs.items()},
      "outputs": {n: _spec(x) for n, x in zip(names, exported.out_avals)},
      "scales": list(task.vision.scales), "patch_size": task.vision.patch_size,
      "grids": [list(task.vision.cells), *map(list, task.vision.grids(size))],
      "preprocessing": {
          "image": f"decode, turn upright, resize to {size[0]} x {size[1]} pixels (height x width) "
                   "without regard to the aspect ratio, uint8 RGB; the program normalises",
          **loaded_model.preprocessing(loaded, task)},
  }
  out.mkdir(parents=True, exist_ok=True)
  # The description goes first and comes last: with it, and only with it, an artefact is whole.
  (out / DESCRIPTION).unlink(missing_ok=True)
  with features.replacing(out / PROGRAM) as file:
    file.write(exported.serialize())
  with features.replacing(out / PARAMS) as file:
    np.savez(file, **params)
  with features.replacing(out / DESCRIPTION) as file:
    file.write((json.dumps(description, indent=1) + "\n").encode())
  return [out / PROGRAM, out / PARAMS, out / DESCRIPTION]


def program(task: Any, limits: dict[str, Any]) -> Callable[..., dict[str, jax.Array]]:
  """The function that is exported: (params by slash name, image[, text]) -> arrays by name.

  Names and contents are those of `features.FEATURES`, with a batch axis in front, but for
  `selected_scale` (t_high,), which is the same for all images.
  """
  def encode(params, image, *text):
    batch = {"image": image} | ({"text": text[0]} if text else {})
    found = task.outputs["encode"](trees.nest(params), batch, **limits)
    looks = found.pop("looks")
    out = {n: found[n] for n in features.TENSORS if found.get(n) is not None}
    index = [x for look in looks for x in look]
    none = jax.numpy.zeros((image.shape[0], 0), np.int32)
    out["selected_index"] = jax.numpy.concatenate([none, *index], axis=1)
    scale = [np.full(x.shape[1], i, np.int32) for look in looks for i, x in enumerate(look)]
    out["selected_scale"] = jax.numpy.asarray(np.concatenate([np.zeros(0, np.int32), *scale]))
    return out
  return encode


class Artefact:
  """An exported encoder, ready to run: `artefact(image, text)`.

  Attributes:
    description: what `encoder.json` says.
  """

  def __init__(self, description: dict[str, Any], exported: export.Exported,
               params: dict[str, np.ndarray]):
    self.description = description
    self._params = jax.device_put(params)
    self._call = jax.jit(exported.call)

  def __call__(self, image: np.ndarray, text: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Encodes a batch of any size; see the module's docstring for the inputs.

    Raises:
      ArtefactError: an input is missing, not wanted, or has another shape or type.
    """
    given = {"image": image} | ({} if text is None else {"text": text})
    wanted = self.description["inputs"]
    if given.keys() != wanted.keys():
      raise ArtefactError(f"the program takes {', '.join(wanted)}, got {', '.join(given)}")
    for name, value in given.items():
      found, spec = (str(value.dtype), list(value.shape)), wanted[name]
      if found[0] != spec["dtype"] or found[1][1:] != spec["shape"][1:] \
          or len(value) != len(image):
        raise ArtefactError(f"{name} is {found[0]} {found[1]}, expected {spec['dtype']} "
                            f"{spec['shape']} with b = {len(image)}")
    return jax.device_get(self._call(self._params, *given.values()))


def load(path: str | os.PathLike) -> Artefact:
  """Reads an artefact for the platform there is.

  Raises:
    ArtefactError: the folder is no artefact, a damaged one, one of another version, or one that
      was not lowered for this platform.
  """
  folder = pathlib.Path(path)
  try:
    description = json.loads((folder / DESCRIPTION).read_text())
    found = (description.get("format"), description.get("version"))
  except (OSError, ValueError, AttributeError) as error:
    raise ArtefactError(f"{folder}: is no exported encoder, its {DESCRIPTION} cannot be read "
                        f"({error})") from error
  if found != (FORMAT, VERSION):
    raise ArtefactError(f"{folder}: is {found[0]!r} version {found[1]!r}, this program reads "
                        f"{FORMAT!r} version {VERSION}")
  where = jax.default_backend()
  where = "cuda" if where == "gpu" else where
  if where not in description["platforms"]:
    raise ArtefactError(f"{folder}: was exported for {', '.join(description['platforms'])}, not "
                        f"for {where}; export it again with this platform")
  try:
    exported = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
  except Exception as error:  # Flatbuffers and MLIR raise whatever they like on foreign bytes.
    raise ArtefactError(f"{folder / PROGRAM}: cannot be read, by jax {jax.__version__}; it was "
                        f"made by {description['made_with'].get('jax')} ({error})") from error
  params = _params(folder / PARAMS)
  specs = {n: _spec(x) for n, x in params.items()}
  if specs != description["params"]:
    differ = sorted(n for n in specs.keys() | description["params"].keys()
                    if specs.get(n) != description["params"].get(n))
    raise ArtefactError(f"{folder / PARAMS}: is not the one {DESCRIPTION} tells of; "
                        f"{len(differ)} arrays differ, e.g. {differ[0]}")
  return Artefact(description, exported, params)


def check_target(out: pathlib.Path, overwrite: bool) -> None:
  """Raises ArtefactError if writing to `out` would mix with what is there or replace it unasked."""
  if out.exists() and not out.is_dir():
    raise ArtefactError(f"{out}: is a file, expected a folder to write to")
  there = {path.name for path in out.iterdir()} if out.is_dir() else set()
  foreign = there - {PROGRAM, PARAMS, DESCRIPTION}
  if foreign or there and not overwrite:
    name = sorted(foreign or there)[0]
    raise ArtefactError(f"{out}: is not empty (it has {name}); give a new folder")


def _params(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path) as file:
      arrays = {n: file[n] for n in file.files}
  except Exception as error:  # zipfile, zlib, struct, KeyError... on foreign or damaged bytes.
    raise ArtefactError(f"{path}: cannot be read ({error})") from error
  return {n: x.view(ml_dtypes.bfloat16) if x.dtype == np.dtype("V2") else x
          for n, x in arrays.items()}


def _spec(x: Any) -> dict[str, Any]:
  return {"dtype": str(x.dtype), "shape": [d if isinstance(d, int) else str(d) for d in x.shape]}


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
