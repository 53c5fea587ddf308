"""Which of its checkpoints does a run of ratings speak for? The last; beside it, others by name.

Published results of this kind are often the best of many checkpoints, chosen on the very pictures
that are reported. `evaluation.json` has the last checkpoint's, and nothing chosen. From the history
of a run this gives, for comparison,

- `best_on_test/EVAL/...`, the checkpoint with the best SRCC on the test pictures themselves: too
  good, and comparable with those papers;
- `selected_on_val/EVAL/...`, the one with the best SRCC on pictures held out from training
  (`holdout` of configs/uniqa/adapter.py): an honest choice.
"""

import json
import pathlib
from typing import Any

from big_vision_ext.core import metrics
from big_vision_ext.core import workdir as workdir_lib
from big_vision_ext.evaluators import _correlation

_TOLD = ("srcc", "plcc", "plcc_fit", "krcc", "rmse")


def chosen(workdir: pathlib.Path) -> dict[str, float]:
  """The numbers of other checkpoints than the last, of a run whose evaluators rate; else {}."""
  config = _json(workdir / workdir_lib.CONFIG_FILE)
  parts = {name: str(spec.get("input", {}).get("part", "")).split("/")
           for name, spec in (config.get("evals") or {}).items() if spec.get("type") == "quality"
           and spec.get("output", "quality") == "quality"}
  tests = [name for name, part in parts.items() if part[1:2] == ["test"]]
  vals = [name for name, part in parts.items() if part[1:2] == ["val"]]
  history = _history(workdir) if tests else []
  out = {}
  for test in tests:
    chosen_by = [("best_on_test", test), *(("selected_on_val", val) for val in vals[:1])]
    for title, judge in chosen_by:
      known = [h for h in history if f"{test}/srcc" in h and f"{judge}/srcc" in h]
      if found := _correlation.best(known, f"{judge}/srcc"):
        out |= {f"{title}/{test}/{k}": found[f"{test}/{k}"] for k in _TOLD
                if found.get(f"{test}/{k}") is not None}
        out[f"{title}/{test}/step"] = float(found["step"])
  return out


def _history(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """What evaluators measured, a dict a step."""
  steps: dict[int, dict[str, Any]] = {}
  for line in metrics.read(workdir):
    steps.setdefault(line["step"], {}).update(line)
  return [steps[step] for step in sorted(steps)]


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
