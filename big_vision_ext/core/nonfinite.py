"""What becomes of a run whose loss or gradient is not finite?

Such an update is never made: `core.step` leaves it out and counts it. What then, config.nan_policy
says, and config.nan_limit how often:

- `stop`: the run ends at the nan_limit-th (default: the first).
- `skip`: it goes on, unless nan_limit in a row (default 100) show that it was no accident.
- `roll_back`: it goes back to its last checkpoint, at most nan_limit times in all (default 3), and
  passes over the batches from there to the step at which it was seen: the steps since then are
  taken with the batches that follow. How many those are is kept in the checkpoints (`core.feed`),
  so that a run that is killed and started again takes the same ones.

Seen is what happened when metrics are looked at: at the steps of config.log, and before any
evaluation or save, so that no checkpoint holds a state that a roll-back should have undone.
"""

from collections.abc import Mapping

from big_vision_ext.core.config import Config

LIMITS = {"stop": 1, "skip": 100, "roll_back": 3}


class TrainingError(ValueError):
  """Training cannot go on."""


class RollBackError(Exception):
  """The run is to go back to its last checkpoint.

  Attributes:
    next_batch: number of the batch of the stream to go on with.
    count: roll-backs of the run, with this one.
  """

  def __init__(self, message: str, next_batch: int, count: int):
    super().__init__(message)
    self.next_batch, self.count = next_batch, count


class Policy:
  """Watches the counters of a run."""

  def __init__(self, config: Config, *, skipped: int, roll_backs: int):
    """`skipped` updates and `roll_backs` are those before the first step that will be checked."""
    self._policy, self._skipped, self._roll_backs = config.nan_policy, skipped, roll_backs
    limit = config.nan_limit
    self._limit = LIMITS[config.nan_policy] if limit is None else limit

  def metrics(self) -> dict[str, int]:
    """What there is to report, by its name in `core.metrics`."""
    return {"roll_backs": self._roll_backs} if self._policy == "roll_back" else {}

  def check(self, step: int, scalars: Mapping[str, float], passed_over: int) -> None:
    """Looks at the metrics of a step.

    Args:
      step: the step.
      scalars: its metrics.
      passed_over: batches that earlier roll-backs passed over.

    Raises:
      TrainingError: the run is to end.
      RollBackError: it is to go back.
    """
    skipped, in_row = int(scalars["skipped_updates"]) - self._skipped, scalars["skipped_in_row"]
    if not skipped:
      return
    seen = f"loss {scalars['loss']}, gradient norm {scalars['grad_norm']} at step {step}"
    if self._policy == "stop" and skipped >= self._limit:
      raise TrainingError(
          f"{skipped} update(s) were not finite by step {step} and were left out ({seen}). The "
          "last checkpoint is sound. Lower config.lr, or set config.nan_policy='skip' or "
          "'roll_back' to go on")
    if self._policy == "skip" and in_row >= self._limit:
      raise TrainingError(f"the last {int(in_row)} updates were all not finite ({seen})")
    if self._policy == "roll_back":
      next_batch = step + passed_over
      if self._roll_backs >= self._limit:
        raise TrainingError(f"an update was not finite ({seen}), after {self._roll_backs} "
                            "roll-backs, which is config.nan_limit. Lower config.lr")
      raise RollBackError(
          f"an update was not finite by step {step} ({seen}): going back to the last checkpoint, "
          f"and on with batch {next_batch} (roll-back {self._roll_backs + 1} of {self._limit})",
          next_batch, self._roll_backs + 1)
