"""How does a run survive the end of its process?

`WORKDIR/checkpoints/STEP/` has three items: `params`, `rest` (optimiser and counters) and `meta`
(JSON: config, versions, and a manifest with name, shape, dtype and checksum of every array). A
folder gets its final name only when it is complete, so a number is a whole checkpoint. In it is
`files.json` with the size of every file, so that what is cut short or missing later can be named.
"""

import errno
import importlib.metadata
import logging
import math
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata import array_metadata_store

from big_vision_ext.core import checksums, inventory, processes, trees
from big_vision_ext.core.config import Config, resolve

FORMAT, VERSION = "bve-checkpoint", 1
FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"
# How much is read at once where parameters are read one after another.
_READ_BYTES = 1 << 28
# What the arrays of a checkpoint are divided into: parameters, and what only training needs.
_ITEMS = ("params", "rest")
AVERAGE = ":ema"
# Devices that hold the same array each write a part of it, for which orbax compiles a program for
# each shape and device. Smaller arrays than this are written sooner by one of them alone.
_SHARED_FROM_BYTES = 1 << 24
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


class CheckpointError(ValueError):
  """A checkpoint that cannot be read or written, or that does not fit what it is meant for."""


class DamagedError(CheckpointError):
  """A checkpoint whose files are missing or altered."""


class Checkpoints:
  """The checkpoints of one workdir. Saving happens in the background."""

  def __init__(self, workdir: str | os.PathLike, keep_every: int | None = None,
               read_only: bool = False, average: bool = False):
    """Opens the folder, and clears away what an interrupted save left behind.

    Args:
      workdir: the run's directory.
      keep_every: checkpoints at multiples of so many steps are kept for good, of the others the
        latest two.
      read_only: change nothing.
      average: `params` gives the moving average (config.ema) of what was trained.
    """
    self._workdir = pathlib.Path(workdir).absolute()
    self._root = self._workdir / FOLDER
    self._keep_every = keep_every
    self._saving = None
    self._average = average
    self._manager = None if read_only else self._open()
    self._reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    folders = self._root.iterdir() if self._root.is_dir() else ()
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())

  def save(self, step: int, state: dict, meta: dict) -> None:
    """Starts to save; waits for an earlier save. `state` may be donated afterwards.

    Raises:
      CheckpointError: this or the earlier save failed, e.g. no space is left.
    """
    arrays = trees.flatten(state)
    sums = jax.device_get(checksums.of_devices(arrays))
    manifest = {name: {"shape": list(x.shape), "dtype": str(x.dtype), "sum": int(sums[name])}
                for name, x in arrays.items()}
    meta = {"format": FORMAT, "version": VERSION, "step": step, "versions": versions(),
            "arrays": manifest, **meta}
    params, rest = _divide(arrays)
    # The earlier save first: were it to fail later, the error would be blamed on this one.
    self.wait()
    self._saving = step
    self._guarded(lambda: self._manager.save(step, args=ocp.args.Composite(
        params=ocp.args.StandardSave(trees.nest(params)),
        rest=ocp.args.StandardSave(trees.nest(rest)), meta=ocp.args.JsonSave(meta))), step)

  def wait(self) -> None:
    """Returns when nothing is being saved any more; raises as `save` does."""
    if self._manager:
      self._guarded(self._manager.wait_until_finished)

  def close(self) -> None:
    """Lets go of the folder; what failed in the background is for `wait` to raise, before."""
    if self._manager:
      try:
        self._manager.close()
      except Exception as error:  # On the way out, often of an error that matters more.
        logging.warning("%s: closing: %s", self._root, _short(error))

  def meta(self, step: int) -> dict:
    """The JSON beside the arrays of a checkpoint.

    Raises:
      DamagedError: it cannot be read, or files of the checkpoint are missing or cut short.
      CheckpointError: it is of another format version.
    """
    self._check_files(step)
    try:
      meta = dict(self._reader.restore(
          self._root / str(step), args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta)
    except (PermissionError, MemoryError):
      raise
    except Exception as error:
      raise DamagedError(f"{self._root / str(step)}: its description cannot be read "
                         f"({_short(error)})") from error
    if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
      raise CheckpointError(
          f"{self._root / str(step)}: is {meta.get('format')!r} version {meta.get('version')!r}; "
          f"this program reads {FORMAT!r} version {VERSION}")
    if not isinstance(meta.get("arrays"), dict):
      raise DamagedError(f"{self._root / str(step)}: its description has no list of arrays")
    return meta

  def restore(self, step: int, shapes: dict, shardings: dict) -> tuple[dict, dict]:
    """The state at a step, onto any mesh.

    Args:
      step: one of `steps()`.
      shapes: tree of the state's shapes and dtypes.
      shardings: a tree like it, of where each array is to live.

    Returns:
      (state, meta)

    Raises:
      DamagedError: files are missing or altered.
      CheckpointError: arrays are missing, extra or misshapen; they are listed by name.
    """
    meta = self.meta(step)
    want = trees.flatten(shapes)
    check_names({n: (tuple(a["shape"]), a["dtype"]) for n, a in meta["arrays"].items()},
                {n: (tuple(x.shape), str(x.dtype)) for n, x in want.items()},
                f"{self._root / str(step)}")
    places = trees.flatten(shardings)
    target = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[n])
              for n, x in want.items()}
    arrays = self._read(step, ("params", "rest"), target, meta)
    leaves = [arrays[name] for name in want]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), meta

  def restore_latest(self, shapes: dict, shardings: dict,
                     fall_back: bool = False) -> tuple[dict, dict] | None:
    """The latest checkpoint; None if there is none at all.

    Args:
      shapes, shardings: as for `restore`.
      fall_back: a damaged one is reported and moved to `WORKDIR/damaged_checkpoints`, and the one
        before it is taken; training on from there comes to the same parameters.

    Raises:
      DamagedError: it is damaged, or with `fall_back` all there are are.
      CheckpointError: as `restore`.
    """
    while steps := self.steps():
      try:
        return self.restore(steps[-1], shapes, shardings)
      except DamagedError as error:
        if len(steps) == 1:
          raise DamagedError(f"{error}; there is no earlier checkpoint to fall back to. To begin "
                             "from scratch, use another --workdir") from error
        if not fall_back:
          raise DamagedError(f"{error}. With --fallback_checkpoint the same command goes on from "
                             f"the one before, of step {steps[-2]}") from error
        logging.warning("DAMAGED CHECKPOINT: %s. Going back to step %d; the damaged one is moved "
                        "to %s", error, steps[-2], self._workdir / DAMAGED_FOLDER)
        self._set_aside(steps[-1])
    return None

  def params(self, step: int) -> dict[str, np.ndarray]:
    """The parameters at a step under their slash names, on the host.

    Raises:
      DamagedError: files are missing or altered.
      CheckpointError: a moving average is asked for and there is none.
    """
    meta = self.meta(step)
    names = {n.removeprefix("params/"): n for n in meta["arrays"] if n.startswith("params/")}
    if self._average:
      averages = {n.removeprefix("ema/"): n for n in meta["arrays"] if n.startswith("ema/")}
      if not averages:
        raise CheckpointError(f"{self._root / str(step)}: holds no moving average of parameters "
                              f"({AVERAGE}); runs with config.ema do")
      names |= averages
    groups, room = [[]], _READ_BYTES
    for name in names.values():
      array = meta["arrays"][name]
      size = math.prod(array["shape"]) * jnp.dtype(array["dtype"]).itemsize
      if groups[-1] and size > room:
        groups.append([])
        room = _READ_BYTES
      groups[-1].append(name)
      room -= size
    out = {}
    for group in groups:
      for item, part in zip(_ITEMS, _divide(dict.fromkeys(group))):
        out |= self._read_on_host(step, item, part, meta) if part else {}
    return {name: out[stored] for name, stored in names.items()}

  def _read_on_host(self, step, item, group, meta):
    """Some arrays of an item, of all there are: reading them at once takes thrice the memory."""
    stored = _divide(meta["arrays"])[_ITEMS.index(item)]
    target = {n: np.empty(a["shape"], jnp.dtype(a["dtype"])) if n in group else ocp.PLACEHOLDER
              for n, a in stored.items()}
    tree = trees.nest(target)
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        read = reader.restore(self._root / str(step) / item, args=ocp.args.PyTreeRestore(
            item=tree, restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)))
      flat = trees.flatten(read)
      prefix = "params/" if item == "params" else ""
      arrays = {prefix + n: np.asarray(flat[n]) for n in group}
    except (PermissionError, MemoryError):
      raise
    except Exception as error:
      raise self._unreadable(step, error) from error
    self._check_sums(step, {n: checksums.of_host(x) for n, x in arrays.items()}, meta)
    return arrays

  def _read(self, step, items, target, meta):
    parts = dict(zip(_ITEMS, _divide(target)))
    read = failure = None
    try:
      read = self._reader.restore(self._root / str(step), args=ocp.args.Composite(**{
          item: ocp.args.StandardRestore(trees.nest(parts[item])) for item in items}))
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:
      failure = error
    if processes.gather(failure is not None).any():
      raise self._unreadable(step, failure or "by another process, which says why") from failure
    arrays = {}
    for item in items:
      flat = trees.flatten(read[item])
      arrays |= {f"params/{n}": x for n, x in flat.items()} if item == "params" else flat
    self._check_sums(step, jax.device_get(checksums.of_devices(arrays)), meta)
    return arrays

  def _unreadable(self, step, error):
    why = _short(error) if isinstance(error, Exception) else error
    return DamagedError(f"{self._root / str(step)}: its arrays cannot be read ({why})")

  def _check_files(self, step):
    if wrong := inventory.differences(self._root / str(step)):
      raise DamagedError(f"{self._root / str(step)}: step {step} is damaged: "
                         + "; ".join(wrong[:3])
                         + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))

  def _take_inventory(self):
    """Called in the background when all is written and the folder has not got its name yet."""
    if not jax.process_index():
      (folder,) = self._root.glob(f"{self._saving}.*tmp*")
      inventory.take(folder)

  def _check_sums(self, step, sums, meta):
    altered = [n for n in sums if int(sums[n]) != meta["arrays"][n]["sum"]]
    if altered:
      raise DamagedError(f"{self._root / str(step)}: {len(altered)} of {len(sums)} arrays are not "
                         f"what was saved, e.g. {altered[0]} (their checksums differ)")

  def _open(self):
    ocp.type_handlers.register_type_handler(jax.Array, ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_SHARED_FROM_BYTES,
        array_metadata_store=array_metadata_store.Store()), override=True)
    return ocp.CheckpointManager(self._root, options=ocp.CheckpointManagerOptions(
        max_to_keep=2, keep_period=self._keep_every, cleanup_tmp_directories=True,
        enable_async_checkpointing=True, async_options=ocp.options.AsyncOptions(
            post_finalization_callback=self._take_inventory)))

  def _set_aside(self, step):
    self._manager.close()
    if jax.process_index() == 0:
      aside = self._workdir / DAMAGED_FOLDER
      aside.mkdir(exist_ok=True)
      count = len(list(aside.iterdir()))
      os.rename(self._root / str(step), aside / f"{step}_{count}")
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils
      multihost_utils.sync_global_devices("damaged checkpoint set aside")
    self._manager = self._open()

  def _guarded(self, act: Callable[[], Any], step: int | None = None) -> Any:
    try:
      return act()
    except Exception as error:
      if not _is_disk_full(error):
        raise CheckpointError(f"{self._root}: saving failed ({_short(error)}); complete "
                              f"checkpoints there: {self._complete()}") from error
      raise CheckpointError(
          f"{self._root}: no space is left on the device to save "
          f"{'the checkpoint' if step is None else f'step {step}'}. Complete checkpoints there: "
          f"{self._complete()}; they are untouched. Free some space and start the same command "
          "again") from error

  def _complete(self) -> str:
    return ", ".join(map(str, self.steps())) or "none"


def split_average(path: str | os.PathLike) -> tuple[pathlib.Path, bool]:
  """A path without the ":ema" that asks for a run's moving average, and whether it had one."""
  text = os.fspath(path)
  return pathlib.Path(text.removesuffix(AVERAGE)).absolute(), text.endswith(AVERAGE)


def find(path: str | os.PathLike, step: int | None = None) -> tuple[Checkpoints, int]:
  """The checkpoint that a path means: a workdir's latest, or the one whose folder it is.

  Args:
    path: of a workdir, or of one checkpoint's folder, which `:ema` may follow.
    step: which of a workdir's; default the latest.

  Raises:
    CheckpointError: there is none.
  """
  path, average = split_average(path)
  if step is None and path.name.isdigit() and path.parent.name == FOLDER:
    step, path = int(path.name), path.parent.parent
  elif path.name == FOLDER:
    path = path.parent
  if not path.is_dir():
    raise CheckpointError(f"{path}: there is no such directory")
  checkpoints = Checkpoints(path, read_only=True, average=average)
  steps = checkpoints.steps()
  if not steps:
    raise CheckpointError(f"{path}: has no checkpoint (expected {FOLDER}/STEP in it)")
  if step is not None and step not in steps:
    raise CheckpointError(f"{path}: has no checkpoint of step {step}, only of "
                          f"{', '.join(map(str, steps))}")
  return checkpoints, steps[-1] if step is None else step


def load_workdir(workdir: str | os.PathLike, step: int | None = None) -> tuple[Config, dict, int]:
  """What evaluation and export need of a run.

  Args:
    workdir: a run's directory, or one checkpoint's folder; followed by `:ema` for the moving
      average.
    step: which checkpoint; default the latest.

  Returns:
    (config, parameters as nested dicts of numpy arrays, step)

  Raises:
    CheckpointError: there is no such checkpoint, or it cannot be read.
  """
  checkpoints, step = find(workdir, step)
  params = trees.nest(checkpoints.params(step))
  return resolve(checkpoints.meta(step)["config"]), params, step


def check_names(have: dict[str, Any], want: dict[str, Any], where: str) -> None:
  """Compares {name: (shape, dtype)}; a difference is a CheckpointError that lists it by name."""
  lines = []
  for title, names in (("missing in it", sorted(want.keys() - have.keys())),
                       ("extra in it", sorted(have.keys() - want.keys()))):
    if names:
      source = want if names[0] in want else have
      lines += [f"{title} ({len(names)}):", *(f"  {n} {_show(source[n])}" for n in names)]
  differ = [n for n in sorted(want) if n in have and tuple(have[n]) != tuple(want[n])]
  if differ:
    lines += [f"misshapen ({len(differ)}):",
              *(f"  {n}: it has {_show(have[n])}, expected {_show(want[n])}" for n in differ)]
  if lines:
    raise CheckpointError(f"{where}: its arrays are not those of this model:\n  "
                          + "\n  ".join(lines))


def origin(meta: dict) -> dict:
  """The part of a checkpoint's description that later ones of the run carry on: its `init`."""
  return {"init": meta["init"]} if meta.get("init") else {}


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that results depend on."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _divide(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  params = {n.removeprefix("params/"): x for n, x in arrays.items() if n.startswith("params/")}
  return params, {n: x for n, x in arrays.items() if not n.startswith("params/")}


def _show(entry: tuple) -> str:
  shape, dtype = entry
  return f"{dtype}{list(shape)}"


def _short(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:300]}"


def _is_disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    text = str(error)
    if "No space left on device" in text or "Disk quota exceeded" in text:
      return True
    error = error.__cause__ or error.__context__
  return False
