"""Does a model rate pictures as people do? SRCC, PLCC, KRCC and RMSE with their intervals.

Each picture is shown as several crops at its own resolution, whose scores are averaged. Where the
crops lie is a function of the picture alone, so results depend neither on the batch size nor on the
devices. PLCC is given plain and after a logistic fit (`plcc_fit`), as papers do either. Which
pictures are tested on is `input.part`, e.g. "reference_1/test": by default of the configs no
reference is on both sides.
"""

import jax

from big_vision_ext.evaluators import _rated


class Evaluator:
  """Measures of the task's scores; see `_correlation.measures` and `_rated.measure`.

  Args:
    task: with outputs of `objectives.levels.score`.
    output: which: "quality", or "quality_zero_shot" without the adapter.
    crops: see `crops.KINDS`; `input.eval_crops` goes before it.
    parameters: of the logistic curve, 4 or 5.
    bootstrap: how often pictures are drawn anew for the intervals; 0 for none.
    batch_size: crops at a time, over all processes.

  Raises:
    ValueError: the task has no such output.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, output: str = "quality",
               crops: str = _rated.CROPS, parameters: int = 4, bootstrap: int = 1000,
               batch_size: int = 64):
    if output not in task.outputs:
      raise ValueError(f"quality: output={output!r}: this task has {', '.join(task.outputs)}; "
                       "expected one that rates (towers alone: quality_zero_shot as `type`)")
    rate = task.outputs[output]
    self._fn = jax.jit(lambda params, batch: {
        k: v for k, v in rate(params, batch).items() if k in ("score", "probs")})
    self._input = _rated.with_crops(input_config, crops)
    self._mesh, self._rows, self._batch_size = mesh, batch_sharding, batch_size
    self._how = dict(parameters=parameters, bootstrap=bootstrap)

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      found = _rated.collect(self._fn, params, self._input, self._batch_size, self._rows)
    return _rated.measure(
        found.values["score"], found, probs=found.values["probs"], **self._how)
