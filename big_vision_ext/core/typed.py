"""How does a nested dict of settings become typed dataclasses, with errors that name the key?"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

UNITS = ("steps", "epochs", "examples", "percent")


class ConfigError(ValueError):
  """A setting that is unknown, missing, of the wrong type or out of range; the text names it."""


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training, written in a config as `<name>_<unit>`, e.g. `warmup_epochs = 2`.

  `percent` is of the whole run, between 0 and 100.
  """

  value: float
  unit: str

  def steps(self, *, batch_size: int, epoch_examples: int | None = None,
            total_steps: int | None = None, name: str = "duration", whole: bool = True) -> float:
    """The length in steps, a whole number and at least 1 unless the value is 0.

    Args:
      batch_size: examples in one step.
      epoch_examples: examples in one pass over the data; needed for epochs.
      total_steps: length of the whole run; needed for percent.
      name: the setting's name, for messages.
      whole: False gives the length as it is.

    Raises:
      ConfigError: the unit cannot be used for this setting, or the value is out of range.
    """
    if not self.value >= 0 or math.isinf(self.value):
      raise ConfigError(f"config.{name}_{self.unit}={self.value!r}: expected a number >= 0")
    if self.unit == "steps":
      steps = self.value
    elif self.unit == "examples":
      steps = self.value / batch_size
    elif self.unit == "epochs":
      if epoch_examples is None:
        raise ConfigError(f"config.{name}_epochs: the length of an epoch is not known here")
      steps = self.value * epoch_examples / batch_size
    else:
      if total_steps is None:
        raise ConfigError(f"config.{name}_percent: a share of the run needs the run's length; "
                          f"write {name}_steps, {name}_epochs or {name}_examples")
      if self.value > 100:
        raise ConfigError(f"config.{name}_percent={self.value!r}: expected between 0 and 100")
      steps = self.value / 100 * total_steps
    if not whole:
      return float(steps)
    return 0 if self.value == 0 else max(1, round(steps))


def rest() -> Any:
  """A dataclass field that collects the keys that no other field takes."""
  return dataclasses.field(default_factory=dict, metadata={"rest": True})


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
  """Builds the dataclass `cls` from a mapping, checking names and types all the way down.

  Lists stand for tuples, whole floats do not stand for ints, ints stand for floats. A field typed
  `Duration` called `x` is read from exactly one of `x_steps`, `x_epochs`, `x_examples`,
  `x_percent`.

  Args:
    cls: a dataclass with annotated fields.
    values: the settings; `ConfigDict`s are accepted at any depth.
    path: the name of these settings in messages, e.g. "config.model".

  Raises:
    ConfigError: unknown, missing or ill-typed settings; the message has the full path of the key.
  """
  values = plain(values)
  if not isinstance(values, dict):
    raise ConfigError(f"{path}={values!r}: expected a mapping of settings")
  hints = typing.get_type_hints(cls)
  fields = [f for f in dataclasses.fields(cls) if f.init]
  known, kwargs, taken = [], {}, set()
  rest_field = None
  for field in fields:
    hint = hints[field.name]
    if field.metadata.get("rest"):
      rest_field = field
    elif _is_duration(hint):
      keys = [f"{field.name}_{u}" for u in UNITS]
      known += keys
      given = [k for k in keys if k in values and values[k] is not None]
      taken.update(k for k in keys if k in values)
      if len(given) > 1:
        raise ConfigError(f"{path}: {' and '.join(given)} are both given; keep exactly one")
      if given:
        number = _convert(float, values[given[0]], f"{path}.{given[0]}")
        # A whole number stays one: steps are written and read back as they were.
        number = int(number) if float(number).is_integer() else number
        kwargs[field.name] = Duration(number, given[0].removeprefix(f"{field.name}_"))
      elif field.default is dataclasses.MISSING:
        raise ConfigError(f"{path}: one of {', '.join(keys)} must be given")
    else:
      known.append(field.name)
      if field.name in values:
        taken.add(field.name)
        kwargs[field.name] = _convert(hint, values[field.name], f"{path}.{field.name}")
      elif field.default is field.default_factory is dataclasses.MISSING:
        raise ConfigError(f"{path}.{field.name} must be given ({describe(hint)})")
  unknown = {k: v for k, v in values.items() if k not in taken}
  if rest_field is not None:
    kwargs[rest_field.name] = unknown
  elif unknown:
    raise ConfigError("; ".join(unknown_key(f"{path}.{k}", k, known) for k in unknown))
  return cls(**kwargs)


def unknown_key(where: str, key: str, known: Sequence[str]) -> str:
  """The sentence for a key that is not known, with the nearest one that is."""
  near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
  hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)) or 'none'}"
  return f"{where}: there is no such setting; {hint}"


def to_dict(obj: Any) -> Any:
  """The inverse of `build`: plain dicts, lists and scalars that can be written as JSON."""
  if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
    out = {}
    for field in dataclasses.fields(obj):
      value = getattr(obj, field.name)
      if field.metadata.get("rest"):
        out |= to_dict(value)
      elif isinstance(value, Duration):
        out[f"{field.name}_{value.unit}"] = value.value
      elif value is None and _is_duration(typing.get_type_hints(type(obj))[field.name]):
        continue
      else:
        out[field.name] = to_dict(value)
    return out
  if isinstance(obj, Mapping):
    return {str(k): to_dict(v) for k, v in obj.items()}
  if isinstance(obj, (list, tuple)):
    return [to_dict(v) for v in obj]
  if isinstance(obj, numbers.Number) and hasattr(obj, "item"):
    return obj.item()
  return obj


def plain(value: Any) -> Any:
  """`ConfigDict`s to dicts and lists to tuples, at any depth: the same whether a config was just
  made or was written as JSON and read back, and fit for the fields of modules, which must hash."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  if type(value) in (list, tuple):
    return tuple(plain(v) for v in value)
  return value


def describe(hint: Any) -> str:
  """A type in words for a message."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(describe(a) for a in args)
  if origin is typing.Literal:
    return "one of " + ", ".join(repr(a) for a in args)
  if hint is types.NoneType:
    return "None"
  if hint is bool:
    return "True or False"
  if origin is not None:
    return str(hint).replace("typing.", "")
  return getattr(hint, "__name__", str(hint))


def _is_duration(hint: Any) -> bool:
  return hint is Duration or Duration in typing.get_args(hint)


def _convert(hint: Any, value: Any, path: str) -> Any:
  """`value` as the type `hint`, or a ConfigError."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (typing.Union, types.UnionType):
    return _convert_union(args, value, path, hint)
  if origin is typing.Literal:
    if value in args:
      return value
    near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
    mend = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{path}={value!r}: expected {describe(hint)}{mend}")
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else build(hint, value, path)
  if (origin or hint) is tuple and isinstance(value, (list, tuple)):
    return _convert_tuple(args, value, path, hint)
  if (origin or hint) in (list, Sequence) and isinstance(value, (list, tuple)):
    items = [_convert(args[0] if args else Any, v, f"{path}[{i}]") for i, v in enumerate(value)]
    return items if (origin or hint) is list else tuple(items)
  if (origin or hint) in (dict, Mapping) and isinstance(value, Mapping):
    of = args[1] if args else Any
    return {str(k): _convert(of, v, f"{path}.{k}") for k, v in value.items()}
  is_bool = isinstance(value, bool) or type(value).__name__ == "bool_"
  if hint is bool and is_bool:
    return bool(value)
  if hint is int and isinstance(value, numbers.Integral) and not is_bool:
    return int(value)
  if hint is float and isinstance(value, numbers.Real) and not is_bool:
    return float(value) if not isinstance(value, int) else value
  if hint is str and isinstance(value, str):
    return value
  if hint is types.NoneType and value is None:
    return None
  if hint not in (bool, int, float, str, types.NoneType) and isinstance(value, origin or hint):
    return value
  raise ConfigError(f"{path}={value!r}: expected {describe(hint)}, got {type(value).__name__}")


def _convert_union(args: tuple, value: Any, path: str, hint: Any) -> Any:
  nested = []
  for arg in args:
    try:
      return _convert(arg, value, path)
    except ConfigError as error:
      # For a mapping, the useful complaint is the one from inside the matching dataclass.
      if isinstance(value, Mapping) and (
          dataclasses.is_dataclass(arg) or typing.get_origin(arg) is dict):
        nested.append(error)
  if len(nested) == 1:
    raise nested[0]
  raise ConfigError(
      f"{path}={value!r}: expected {describe(hint)}, got {type(value).__name__}")


def _convert_tuple(args: tuple, value: Sequence, path: str, hint: Any) -> tuple:
  if not args:
    return tuple(value)
  if len(args) == 2 and args[1] is Ellipsis:
    return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
  if len(args) != len(value):
    raise ConfigError(f"{path}={value!r}: expected {len(args)} values ({describe(hint)})")
  return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
