"""How do rows get from the processes that make them onto the devices, and which batch has a step?

Step s of a run, counted from 1, takes batch s - 1 + `passed_over` of the stream: what a roll-back
passes over (`core.nonfinite`) is the only thing about the input that is not a function of the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.core import step as step_lib
from big_vision_ext.core.sharding import AXES, ShardingError
from input_pipeline import loader


class Intake:
  """Rows of the global batch, each made by one process, onto the devices that need it.

  Attributes:
    rows: the rows that this process makes, ascending.
  """

  def __init__(self, sharding: NamedSharding, batch_size: int):
    """Decides which process makes which rows.

    Where every row lives on devices of one process, that one makes it. Where layers are cut across
    processes, a row is needed by several: one makes it, the devices pass it on.

    Args:
      sharding: of the leading axis of a batch, as the program wants it.
      batch_size: rows of the global batch.

    Raises:
      ShardingError: layers are cut across processes, and the rows cannot be cut among all devices.
    """
    self._sharding = self._load = sharding
    owners = _owners(sharding, batch_size)
    if any(len(processes) > 1 for processes in owners):
      self._load = NamedSharding(sharding.mesh, PartitionSpec(AXES))
      if batch_size % sharding.mesh.size:
        raise ShardingError(
            f"a batch of {batch_size} rows, on a mesh whose tensor axis runs across processes, is "
            f"loaded by all {sharding.mesh.size} devices: expected a multiple of that")
    self._spread = jax.jit(lambda batch: batch, out_shardings=sharding)
    self.rows = loader.rows_of(self._load, batch_size)

  def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays of this process's `rows` and those of the others."""
    arrays = loader.to_global(batch, self._load)
    return arrays if self._load is self._sharding else self._spread(arrays)


class Feed:
  """The global batches of a run from some step on, and the account of what was left out."""

  def __init__(self, input_config: loader.InputConfig, spec: Mapping[str, jax.ShapeDtypeStruct],
               sharding: NamedSharding, *, batch_size: int, seed: int, start: int,
               account: Mapping[str, Any] | None = None):
    """Starts to read.

    Args:
      input_config: what to read.
      spec: the task's shapes of a global batch.
      sharding: of the leading axis of a batch.
      batch_size: rows of the global batch.
      seed: of the stream.
      start: steps taken before.
      account: what `account` gave at that step; None: nothing was left out.
    """
    account = account or {}
    self.passed_over = account.get("passed_over", 0)
    self._before = account.get("skipped_records", {})
    self._names = loader.source_names(input_config)
    self._spec = spec
    self._intake = Intake(sharding, batch_size)
    self._stream = loader.train_stream(
        input_config, batch_size=batch_size, seed=seed, start_step=start + self.passed_over,
        rows=self._intake.rows)

  def next(self) -> dict[str, jax.Array]:
    """The next global batch."""
    batch = step_lib.check_batch(self._spec, next(self._stream), jax.process_count())
    return self._intake(batch)

  def skipped(self) -> list[int]:
    """Unusable records of each source that this process has passed over since its start."""
    counts = self._stream.skipped_by_source
    return [counts.get(name, 0) for name in self._names]

  def account(self, skipped: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a checkpoint needs to go on from here; `skipped` of all processes, for each source."""
    counts = {name: self._before.get(name, 0) + int(counts.sum())
              for name, counts in zip(self._names, skipped)}
    return {"passed_over": self.passed_over, "skipped_records": counts}

  def metrics(self, skipped: Sequence[np.ndarray]) -> dict[str, int]:
    """The same as metrics, by their names in `core.metrics`."""
    counts = self.account(skipped)["skipped_records"]
    out = {"passed_over_batches": self.passed_over} if self.passed_over else {}
    return out | {"skipped_records": sum(counts.values()),
                  **{f"skipped_records/{name}": count for name, count in counts.items()}}

  def close(self) -> None:
    """Stops reading."""
    self._stream.close()


def _owners(sharding: NamedSharding, batch_size: int) -> Sequence[set[int]]:
  """The processes whose devices have each row."""
  owners = [set() for _ in range(batch_size)]
  for device, index in sharding.devices_indices_map((batch_size,)).items():
    for row in range(*index[0].indices(batch_size)):
      owners[row].add(device.process_index)
  return owners
