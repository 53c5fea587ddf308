"""How is a weight format written down once, so that it can be both read and written?

A table is a list of rules. A rule says which of our names correspond to which of theirs and how
the arrays turn into each other, for example

    linear("img/Transformer/encoderblock_{}/MlpBlock_0/Dense_0", "trunk.blocks.{}.mlp.fc1")

where `{}` stands for a number, the same on both sides. Which arrays a model has, and their shapes,
`ours.shapes` says; a rule that fits none of them does nothing, so that one table serves all
variants of a model. `load` and `export` run the same rules: a round trip is bitwise.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors, concat

Arrays = Sequence[Lazy]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One correspondence.

  Attributes:
    ours, theirs: names on each side, each with at most one `{}`.
    export: ours -> theirs, in the order of the names.
    load: theirs -> ours, given the shapes that ours must have; the inverse of `export`.
    optional: may be absent, on both sides.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  export: Callable[[Arrays], Arrays]
  load: Callable[[Arrays, Sequence[Shape]], Arrays]
  optional: bool = False


@dataclasses.dataclass(frozen=True)
class Match:
  """A rule applied to a model: the arrays there must be on each side, {name: shape}."""

  rule: Rule
  ours: dict[str, Shape]
  theirs: dict[str, Shape]


def same(ours: str, theirs: str, *, squeeze: int = 0, scalar: bool = False,
         optional: bool = False) -> Rule:
  """An array with the same elements in the same order.

  Args:
    ours, theirs: names.
    squeeze: so many leading axes of size 1 of ours are not there in theirs.
    scalar: theirs has no axes at all, ours has one of size 1.
    optional: see `Rule`.
  """
  def export(xs):
    return [xs[0].reshape(*(() if scalar else xs[0].shape[squeeze:]))]
  return Rule((ours,), (theirs,), export, lambda ys, shapes: [ys[0].reshape(*shapes[0])], optional)


def joined(ours: Sequence[str], theirs: str, axis: int) -> Rule:
  """Several arrays that are one on their side, one after another along an axis."""
  return Rule(tuple(ours), (theirs,), lambda xs: [concat(xs, axis)],
              lambda ys, shapes: ys[0].cut([shape[axis] for shape in shapes], axis))


def linear(ours: str, theirs: str) -> list[Rule]:
  """A dense layer: kernel (in, out) <-> weight (out, in), and bias."""
  kernel = Rule((f"{ours}/kernel",), (f"{theirs}.weight",),
                lambda xs: [xs[0].transpose()], lambda ys, _: [ys[0].transpose()])
  return [kernel, same(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Rule]:
  """A layer norm: scale and bias <-> weight and bias."""
  return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def conv(ours: str, theirs: str) -> list[Rule]:
  """A convolution: kernel (y, x, in, out) <-> weight (out, in, y, x), and bias."""
  kernel = Rule((f"{ours}/kernel",), (f"{theirs}.weight",),
                lambda xs: [xs[0].transpose(3, 2, 0, 1)],
                lambda ys, _: [ys[0].transpose(2, 3, 1, 0)])
  return [kernel, same(f"{ours}/bias", f"{theirs}.bias")]


def conv1x1(ours: str, theirs: str) -> list[Rule]:
  """A dense layer that is a 1 x 1 convolution: kernel (in, out) <-> weight (out, in, 1, 1)."""
  kernel = Rule((f"{ours}/kernel",), (f"{theirs}.weight",),
                lambda xs: [xs[0].transpose().reshape(*xs[0].shape[::-1], 1, 1)],
                lambda ys, _: [ys[0].reshape(*ys[0].shape[:2]).transpose()])
  return [kernel, same(f"{ours}/bias", f"{theirs}.bias")]


def heads_in(ours: str, names: Sequence[str], weight: str, bias: str) -> list[Rule]:
  """Projections into heads: kernels (d, heads, k) <-> one weight (n * heads * k, d), and biases.

  Args:
    ours: name of the attention module.
    names: its projections in the order they are packed in, e.g. ("query", "key", "value").
    weight, bias: their names, e.g. "attn.qkv.weight", "attn.qkv.bias".
  """
  def export(xs):
    flat = [x.reshape(x.shape[0], -1).transpose() for x in xs]
    return [concat(flat) if len(flat) > 1 else flat[0]]

  def load(ys, shapes):
    return [y.transpose().reshape(*s) for y, s in zip(ys[0].split(len(shapes)), shapes)]

  def export_bias(xs):
    flat = [x.reshape(-1) for x in xs]
    return [concat(flat) if len(flat) > 1 else flat[0]]

  def load_bias(ys, shapes):
    return [y.reshape(*s) for y, s in zip(ys[0].split(len(shapes)), shapes)]

  return [Rule(tuple(f"{ours}/{n}/kernel" for n in names), (weight,), export, load),
          Rule(tuple(f"{ours}/{n}/bias" for n in names), (bias,), export_bias, load_bias)]


def heads_out(ours: str, theirs: str) -> list[Rule]:
  """The projection out of heads: kernel (heads, k, d) <-> weight (d, heads * k), and bias."""
  kernel = Rule((f"{ours}/kernel",), (f"{theirs}.weight",),
                lambda xs: [xs[0].reshape(-1, xs[0].shape[-1]).transpose()],
                lambda ys, shapes: [ys[0].transpose().reshape(*shapes[0])])
  return [kernel, same(f"{ours}/bias", f"{theirs}.bias")]


def matches(rules: Sequence[Rule], shapes: Mapping[str, Shape], format: str) -> list[Match]:
  """The rules that apply to a model, at every number of theirs.

  Args:
    rules: the table.
    shapes: all arrays of the model, {our name: shape}.
    format: its name, for messages.

  Raises:
    ConvertError: the format has no place for some of the model's arrays.
  """
  out, placed = [], set()
  for rule in rules:
    pattern = re.compile(re.escape(rule.ours[0]).replace(r"\{\}", r"(\d+)"))
    for name in shapes:
      if not (found := pattern.fullmatch(name)):
        continue
      fill = lambda text, found=found: text.replace("{}", found[1]) if "{}" in text else text
      names = [fill(n) for n in rule.ours]
      if any(n not in shapes for n in names):
        continue
      placed.update(names)
      ours = {n: tuple(shapes[n]) for n in names}
      # No values are read: this runs the rule on shapes.
      ghosts = rule.export([Lazy(s, np.float32, _nothing) for s in ours.values()])
      out.append(Match(rule, ours, {fill(n): x.shape for n, x in zip(rule.theirs, ghosts)}))
  if homeless := [n for n in shapes if n not in placed]:
    raise ConvertError(f"the format {format!r} has no place for these arrays of the model:\n  "
                       + "\n  ".join(f"{n} {list(shapes[n])}" for n in homeless))
  return out


def load(rules: Sequence[Rule], shapes: Mapping[str, Shape], theirs: Tensors, where: str, *,
         format: str, ignore: Sequence[str] = ()) -> Tensors:
  """Their arrays under our names, unread.

  Args:
    rules: the table.
    shapes: the model's arrays, {our name: shape}.
    theirs: what a file holds.
    where: the file, for messages.
    format: the table's name, for messages.
    ignore: full-match patterns of names that are of no use (buffers and the like).

  Raises:
    ConvertError: arrays are missing, extra, misshapen or not floating; all are listed by name.
  """
  found = matches(rules, shapes, format)
  kept = {n: s for n, s in theirs.specs().items() if not any(re.fullmatch(p, n) for p in ignore)}
  check(kept, [(m.theirs, m.rule.optional) for m in found], where)
  out = {}
  for match in found:
    if all(name in kept for name in match.theirs):
      arrays = match.rule.load([theirs.lazy(n) for n in match.theirs], list(match.ours.values()))
      out |= dict(zip(match.ours, arrays))
  return Tensors(out)


def export(rules: Sequence[Rule], shapes: Mapping[str, Shape], ours: Mapping[str, Any], *,
           format: str, where: str = "the weights") -> Tensors:
  """Our arrays under their names, unread; arguments as in `load`.

  Raises:
    ConvertError: arrays are missing, extra, misshapen or not floating; all are listed by name.
  """
  ours, found = Tensors(ours), matches(rules, shapes, format)
  check(ours.specs(), [(m.ours, m.rule.optional) for m in found], where)
  out = {}
  for match in found:
    if all(name in ours for name in match.ours):
      out |= dict(zip(match.theirs, match.rule.export([ours.lazy(n) for n in match.ours])))
  return Tensors(out)


def check(have: Mapping[str, tuple], want: Sequence[tuple[Mapping[str, Shape], bool]],
          where: str) -> None:
  """Compares what there is with what there should be.

  Args:
    have: {name: (shape, dtype)}.
    want: ({name: shape}, optional) pairs; an optional group may be absent as a whole.
    where: what is looked at, for messages.

  Raises:
    ConvertError: with all differences, by name.
  """
  shapes, missing = {}, []
  for group, optional in want:
    shapes |= group
    if not (optional and not any(n in have for n in group)):
      missing += [n for n in group if n not in have]
  extra = sorted(n for n in have if n not in shapes)
  lines = _listed("missing in it", [f"{n} {list(shapes[n])}{_near(n, extra)}" for n in missing])
  lines += _listed("extra in it", [f"{n} {_show(have[n])}" for n in extra])
  both = [n for n in shapes if n in have]
  lines += _listed("misshapen", [
      f"{n}: it has {_show(have[n])}, expected {list(shapes[n])}" for n in both
      if tuple(have[n][0]) != tuple(shapes[n])])
  lines += _listed("not of floating numbers", [
      f"{n}: {have[n][1]}" for n in both if not is_floating(have[n][1])])
  if lines:
    raise ConvertError(f"{where}: its arrays are not those of this model:\n  " + "\n  ".join(lines))


def is_floating(dtype: Any) -> bool:
  """Whether a dtype is one of floating numbers, bfloat16 included."""
  return np.dtype(dtype).kind == "f" or np.dtype(dtype).name == "bfloat16"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
  return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines)] if lines else []


def _near(name: str, extra: Sequence[str]) -> str:
  near = difflib.get_close_matches(name, extra, 1, 0.9) if len(extra) < 100 else ()
  return f" (is {near[0]!r} meant?)" if near else ""


def _show(spec: tuple) -> str:
  shape, dtype = spec
  return f"{dtype}{list(shape)}"


def _nothing() -> np.ndarray:
  raise ConvertError("a rule may not read values")
