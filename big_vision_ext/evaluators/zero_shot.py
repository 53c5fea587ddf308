"""Does an image find the name of its class, without having seen an example? (Radford et al. 2021)

The weights of a class are the mean over prompt templates (and over names, if it has several) of
normalised text embeddings, normalised again; an image is of the class whose weights have the
largest inner product with its embedding. Reported are the shares of images whose class is the best
(*top1*) or among the best five (*top5*), and the mean over classes of top1. A tie is no find.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from big_vision_ext.evaluators import _common, _labelled, _ranks
from input_pipeline import contents

TEMPLATES = {
    "name": ("{}",),
    "photo": ("a photo of a {}",),
    "ensemble": (
        "{}", "a photo of a {}", "a close photo of one {}", "a photo of many {}",
        "a small {} in a large picture", "a cropped picture of a {}", "a drawing of a {}",
        "a dark photo of a {}", "a blurry photo of a {}",
    ),
}


class Evaluator:
  """See the module's docstring; the data set needs class labels.

  Args:
    names: what to call the classes: {label: name or list of names}, a list of labels that are
      names themselves, or a JSON file of either. Classes that are in it and not in the data
      compete, too. None: the labels of the data, with blanks for "_" and "-".
    templates: "name", "photo" or "ensemble" (`TEMPLATES`), a list of texts with "{}" where the
      name goes, or a text file with one on each line.
    ks: the ranks to report.
    batch_size: images at a time, over all processes.
    text_batch_size: texts at a time.

  Raises:
    ValueError: names or templates that cannot be read, or that lack a class or the "{}".
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               names: Mapping[str, str | Sequence[str]] | Sequence[str] | str | None = None,
               templates: str | Sequence[str] = "ensemble", ks: Sequence[int] = (1, 5),
               batch_size: int = 32, text_batch_size: int = 256):
    self._mesh, self._input, self._ks = mesh, input_config, tuple(ks)
    self._names = None if names is None else read_names(names)
    self._templates = read_templates(templates)
    self._collect = functools.partial(
        _labelled.collect, _labelled.embedding(task), input_config=input_config,
        batch_size=batch_size, batch_sharding=batch_sharding)
    self._embed_texts = functools.partial(
        _common.embed_texts, jax.jit(task.outputs["text"]), input_config=input_config,
        batch_size=text_batch_size, batch_sharding=batch_sharding)

  def run(self, params) -> dict[str, float]:
    labels = {e.label for e in contents.of_config(self._input)} - {None}
    names = self._names or {label: (_plain(label),) for label in sorted(labels)}
    if unknown := sorted(labels - names.keys()):
      raise ValueError(f"zero_shot: names lacks {len(unknown)} classes of {self._input.data} "
                       f"[{self._input.split}], e.g. {unknown[0]!r}")
    texts = [[t.replace("{}", name) for name in names[label] for t in self._templates]
             for label in names]
    with jax.set_mesh(self._mesh):
      x, label = self._collect(params)
      z, which = self._embed_texts(params, [t for group in texts for t in group])
    ends = np.cumsum([len(group) for group in texts])
    groups = [z[part] for part in np.split(which, ends[:-1])]
    index = {name: i for i, name in enumerate(names)}
    return measure(x, np.array([index[name] for name in label]), class_weights(groups), self._ks)


def class_weights(groups: Sequence[Float[np.ndarray, "p d"]]) -> Float[np.ndarray, "c d"]:
  """The normalised mean of the normalised text embeddings of each class, in float64."""
  def unit(z):
    return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
  return np.stack([unit(unit(z.astype(np.float64)).mean(0)) for z in groups])


def measure(x: np.ndarray, label: np.ndarray, weights: np.ndarray, ks: Sequence[int]
            ) -> dict[str, float]:
  """Accuracies of images x (n, d) of classes `label` (n,) against `weights` (c, d)."""
  scores = x.astype(np.float64) @ weights.T
  out = {f"top{k}": float(np.mean(_ranks.top_k(scores, label, k, _ranks.TIE))) for k in ks}
  best = _ranks.top_k(scores, label, 1, _ranks.TIE)
  out["mean_per_class"] = _ranks.mean_per_class(best, label)
  out |= {f"chance/top{k}": min(1.0, k / len(weights)) for k in ks}
  return out | {"classes": float(len(weights)), "images": float(len(label))}


def read_names(names) -> dict[str, tuple[str, ...]]:
  """{label: its names} from the `names` of a config, which may be a file."""
  source = "names"
  if isinstance(names, str):
    source = names
    names = _parse(names)
  if isinstance(names, Mapping):
    table = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in names.items()}
  else:
    table = {label: (_plain(label),) for label in names}
    if len(table) != len(names):
      raise ValueError(f"zero_shot: {source} has a class twice; expected different ones")
  bad = [k for k, v in table.items() if not v or not all(isinstance(n, str) and n for n in v)]
  if bad or not table:
    raise ValueError(f"zero_shot: {source}: expected a name, or a list of names, for each class"
                     + (f"; {bad[0]!r} has {table[bad[0]]!r}" if bad else "; it has no class"))
  owner = {}
  for label, words in table.items():
    for name in words:
      if owner.setdefault(name, label) != label:
        raise ValueError(f"zero_shot: {source} calls both {owner[name]!r} and {label!r} {name!r}; "
                         "no model can tell them apart")
  return table


def read_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
  """The templates of a config: a set's name, a file, or the templates themselves."""
  if isinstance(templates, str) and templates in TEMPLATES:
    return TEMPLATES[templates]
  if isinstance(templates, str):
    path = pathlib.Path(templates)
    if not path.is_file():
      raise ValueError(f"zero_shot: templates={templates!r} is no file and none of the sets "
                       f"{', '.join(TEMPLATES)}")
    templates = [line.strip() for line in path.read_text().splitlines() if line.strip()]
  bad = [t for t in templates if "{}" not in t]
  if bad or not templates:
    raise ValueError("zero_shot: templates " + (f"has {bad[0]!r}" if bad else "is empty")
                     + '; expected texts with "{}" where the name of the class goes')
  return tuple(templates)


def _parse(path: str):
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"zero_shot: names={path!r} cannot be read as JSON ({error}); expected a list "
                     "of classes, or an object {label: name or names}") from error


def _plain(label: str) -> str:
  return " ".join(label.replace("_", " ").replace("-", " ").split())
