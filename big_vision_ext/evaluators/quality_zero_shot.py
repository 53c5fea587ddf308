"""Does a CLIP rate pictures as people do, by nothing but the words for levels of quality?

No adapter, and the levels' own values. All rated pictures are tested on unless `input.part` says
which; each is shown as several crops, as by the evaluator `quality`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_ext.evaluators import _rated
from big_vision_ext.objectives import levels
from big_vision_ext.tasks import quality


class Evaluator:
  """The measures of `quality` for each of some sets of prompts, as NAME/srcc and so on.

  Args:
    task: with outputs `image_features` and `text_features`.
    prompts: names of `objectives.levels.READOUTS`, files, or {name: groups and values}.
    crops, parameters, bootstrap, batch_size: see `quality`.

  Raises:
    ValueError: prompts that cannot be read, or a task without both towers.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               prompts: Sequence[str] | Mapping[str, Any] = ("uniqa", "uniqa_ensemble"),
               crops: str = _rated.CROPS, parameters: int = 4, bootstrap: int = 1000,
               batch_size: int = 64):
    if "text_features" not in task.outputs or "image_features" not in task.outputs:
      raise ValueError(f"quality_zero_shot: this task has {', '.join(task.outputs)}; expected the "
                       "towers of a CLIP")
    names = {prompts: prompts} if isinstance(prompts, str) else prompts
    specs = names if isinstance(names, Mapping) else {name: name for name in names}
    if not specs:
      raise ValueError("quality_zero_shot: prompts is empty; expected a name or more")
    self._readouts = {name: levels.read(spec) for name, spec in specs.items()}
    image, text = task.outputs["image_features"], task.outputs["text_features"]
    self._image = jax.jit(lambda params, batch: {"z": image(params, batch)})
    self._text = jax.jit(lambda params, ids: text(params, {"text": ids}))
    self._input, self._tower = _rated.with_crops(input_config, crops), task.text
    self._mesh, self._rows, self._batch_size = mesh, batch_sharding, batch_size
    self._how = dict(parameters=parameters, bootstrap=bootstrap)

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      texts = quality.embed(
          lambda ids: self._text(params, ids), list(self._readouts.values()),
          tower=self._tower, tokenizer=self._input.tokenizer,
          canonicalize=self._input.canonicalize)
      rows = _rated.crop_rows(self._image, params, self._input, self._batch_size, self._rows)
      scale = float(np.asarray(params["t"]).reshape(-1)[0])
    out = {}
    for (name, readout), z in zip(self._readouts.items(), texts):
      of_crops = jax.device_get(levels.score(rows.values["z"], z, scale, readout.values))
      found = rows.of_images({k: np.asarray(of_crops[k]) for k in ("score", "probs")})
      values = _rated.measure(
          found.values["score"], found, probs=found.values["probs"], **self._how)
      out |= {f"{name}/{k}": v for k, v in values.items()}
    return out
