"""What may an experiment's config say, and how is it read from a file and the command line?

A config file has `get_config(arg=None) -> ConfigDict`. `load` runs it and applies overrides,
`resolve` checks every key and gives the typed `Config` that the trainer uses.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import ml_collections

from big_vision_ext.core import hardware
from big_vision_ext.core.typed import (
    UNITS,
    ConfigError,
    Duration,
    build,
    rest,
    to_dict,
    unknown_key,
)

__all__ = ["Config", "ConfigError", "Debug", "Duration", "Evaluation", "Init", "Mesh", "Optim",
           "Schedule", "base_config", "build", "differences", "load", "parse_arg", "resolve",
           "split_overrides",
           "to_dict"]


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW, Adam, Adafactor, LARS or SGD. Patterns are full-match regular expressions over slash
  names; the first match wins.

  Weight decay is big_vision's: a step subtracts `schedule * (lr * lr_mult * adam + weight_decay *
  wd_mult * param)`, so it is not multiplied by the learning rate. Other libraries' decay is
  ours divided by lr.

  "adam" is AdamW whose decay is part of the gradient instead, before the moments, as in PyTorch's
  `Adam(weight_decay=...)`: `weight_decay * wd_mult * param` is added to the clipped gradient.

  "adafactor" is that of Zhai et al. 2022, sec. 3.4: second moments of kernels as a row and a
  column, no scaling by the size of parameters, momentum kept. `b1` is its momentum, `b2` the cap
  of the second moment's decay, which is 1 - step^-0.8 below it; `eps` and `nu_dtype` are AdamW's.

  "sgd" has the momentum `b1`: a step subtracts lr * m, m = b1 * m + gradient (PyTorch's). "lars" is
  the same with each kernel's gradient scaled to trust_coefficient times the kernel's length (You et
  al. 2017, as in MAE's linear probe: no scaling of biases and norms).

  Attributes:
    wd_mults: (pattern, factor) pairs; parameters that none matches are not decayed.
    weight_decay_end: what the decay comes to, along half a cosine, after `weight_decay_steps`
      updates; None: it stays.
    lr_mults: (pattern, factor) pairs; parameters that none matches have factor 1.
    layer_decay: of the learning rate from each layer of an encoder to the one before, and as in
      PyTorch of the weight decay with it; multiplied onto lr_mults. See `core.layer_decay`.
    freeze: patterns of parameters that are not trained: no gradient, no state, not in the norms.
    clip_norm: largest global norm of the gradient; None: no clipping.
    accum_steps: a batch is cut into so many micro-batches whose gradients are averaged. Losses
      that compare examples with each other, as contrastive ones do, then see the pairs within a
      micro-batch only.
    mu_dtype: dtype of the first moment; None: that of the parameter for AdamW, and bfloat16 for
      Adafactor; of LARS and SGD that of their momentum.
    nu_dtype: dtype of AdamW's second moment; None: that of the parameter. bfloat16 needs b2 of at
      most 0.99, as rounding would swallow the changes of a slower one.
    clip_rms: of Adafactor: largest root mean square of a parameter's update; None: no clipping.
    trust_coefficient: of LARS.
  """

  name: Literal["adamw", "adam", "adafactor", "lars", "sgd"] = "adamw"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  weight_decay_end: float | None = None
  weight_decay_steps: int = 0
  wd_mults: tuple[tuple[str, float], ...] = ((".*/kernel", 1.0),)
  lr_mults: tuple[tuple[str, float], ...] = ()
  layer_decay: float | None = None
  freeze: tuple[str, ...] = ()
  clip_norm: float | None = 1.0
  accum_steps: int = 1
  mu_dtype: Literal["float32", "bfloat16"] | None = None
  nu_dtype: Literal["float32", "bfloat16"] | None = None
  clip_rms: float | None = None
  trust_coefficient: float = 0.001


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The learning rate over the run; see `core.schedules`.

  Attributes:
    warmup: linear rise from lr / warmup at the first step to lr.
    timescale: of rsqrt: lr / sqrt(1 + t / timescale), t counted from the end of the warm-up.
    cooldown: multiplied onto the schedule at the end of the run, linearly to 0.
    end: what cosine and linear end at, as a fraction of lr.
    every: the rate changes only so often, e.g. every_epochs=1, as where a schedule is stepped once
      an epoch; None: at each step.
  """

  type: Literal["cosine", "rsqrt", "constant", "linear"] = "cosine"
  warmup: Duration | None = None
  timescale: Duration | None = None
  cooldown: Duration | None = None
  end: float = 0.0
  every: Duration | None = None


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices on each mesh axis; -1: all that the other axes leave over.

  `data` replicates parameters, `fsdp` shards them with the batch, `tensor` shards the layers.

  Attributes:
    max_fsdp: given, `data` and `fsdp` may both be -1: fsdp takes the largest divisor of one slice's
      devices up to this, data the rest. For models whose widths more devices would not divide.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  max_fsdp: int | None = None


@dataclasses.dataclass(frozen=True)
class Init:
  """Weights to begin with: of another run, or in any format of `convert`.

  Attributes:
    path: a workdir (its latest checkpoint), one checkpoint's folder, or weights of another library.
    map: (pattern, replacement) pairs that turn their names into ours.
    allow_missing: patterns of our parameters that may be absent there; they keep their random init.
    allow_extra: patterns of their parameters, under our names, that are not needed here.
    resize_posemb: resize image position tables of another grid instead of refusing them.
  """

  path: str
  map: tuple[tuple[str, str], ...] = ()
  allow_missing: tuple[str, ...] = ()
  allow_extra: tuple[str, ...] = ()
  resize_posemb: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One entry of `evals`.

  Attributes:
    type: a module of `big_vision_ext/evaluators`.
    eval: how often; it always runs at the end as well.
    input: settings of `input` that differ for this evaluator.
    args: everything else goes to the evaluator.
  """

  type: str
  eval: Duration | None = None
  input: dict[str, Any] = dataclasses.field(default_factory=dict)
  args: dict[str, Any] = rest()


@dataclasses.dataclass(frozen=True)
class Debug:
  """Aids for finding mistakes.

  Attributes:
    checks: a NaN ends the run and names the operation it came from, whatever nan_policy says; so
      does a transfer between host and device that nobody asked for. Steps are slower.
  """

  checks: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
  """An experiment.

  Attributes:
    task: a module of `big_vision_ext/tasks`, or the dotted path of another one.
    total: length of the run.
    batch_size: examples in a step, over all devices and processes.
    model: the task's own settings; the task checks them.
    input: fields of `input_pipeline.loader.InputConfig`.
    sharding_rules: (logical axis, mesh axis, tuple of mesh axes, or None) pairs that replace the
      defaults of `core.sharding`.
    min_shard_size: parameters with fewer elements stay replicated.
    hardware: settings that replace the config's on devices of a kind, by the names of
      `core.hardware`, e.g. {"v5e": {"mesh": {"fsdp": 128}, "model": {"text": {"scan": True}}}}.
      `load` puts them in place; those of the command line win over them.
    ema: decay of a moving average of the trained parameters, e.g. 0.9999; None for none. It is in
      the checkpoints, evaluators see it, and `WORKDIR:ema` reads it. Early on it forgets faster:
      the decay after t steps is at most (1 + t) / (10 + t).
    init: weights to begin with.
    resume: another run to go on from, with optimiser state and step.
    ckpt: how often a checkpoint is written, beside the one at the end; the latest two are kept.
    keep_ckpt: checkpoints at multiples of this are kept for good.
    log: how often metrics are written.
    nan_policy: what to do about a non-finite loss or gradient, which never changes the parameters:
      "stop", "skip" or "roll_back"; see `core.nonfinite`.
    nan_limit: how often; None: 1 to stop, 100 in a row to skip, 3 roll-backs.
    stall_seconds: a step that takes longer, with the wait for its batch, ends the process with the
      stacks of all threads and code 75; evaluations and saves have ten times as long. None: never.
    peer_seconds: of several processes, one that gives no sign of life for so long ends the others.
    profile_steps: (first step, how many) to record into `WORKDIR/profile`, for xprof.
    debug: aids for finding mistakes.
  """

  task: str
  total: Duration
  batch_size: int
  model: dict[str, Any] = dataclasses.field(default_factory=dict)
  input: dict[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  optim: Optim = Optim()
  lr: float = 1e-3
  schedule: Schedule = Schedule()
  mesh: Mesh = Mesh()
  sharding_rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = ()
  min_shard_size: int = 2**14
  hardware: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  ema: float | None = None
  init: str | Init | None = None
  resume: str | None = None
  ckpt: Duration | None = Duration(1000, "steps")
  keep_ckpt: Duration | None = None
  log: Duration | None = Duration(50, "steps")
  evals: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
  nan_policy: Literal["skip", "stop", "roll_back"] = "stop"
  nan_limit: int | None = None
  stall_seconds: float | None = 900.0
  peer_seconds: int = 60
  profile_steps: tuple[int, int] | None = None
  debug: Debug = Debug()


# What may differ between two starts in one workdir: how often things are done, where they are
# computed, how the input is read; nothing that the parameters depend on but the run's length.
FREE_KEYS = ("total", "ckpt", "keep_ckpt", "log", "evals", "mesh", "sharding_rules",
             "min_shard_size", "hardware", "nan_policy", "nan_limit", "stall_seconds",
             "peer_seconds", "profile_steps", "debug")
FREE_INPUT_KEYS = ("threads", "workers", "prefetch", "cache_mb", "max_skip_share")


def base_config() -> ml_collections.ConfigDict:
  """An open config with the groups that most files fill in, empty."""
  return ml_collections.ConfigDict({"model": {}, "input": {}, "evals": {}}, type_safe=False)


def load(path_with_args: str, overrides: Sequence[str] = (),
         device_kind: str | None = None) -> ml_collections.ConfigDict:
  """Runs a config file and applies overrides.

  Args:
    path_with_args: `configs/x.py` or `configs/x.py:arg`; `arg` goes to `get_config(arg)`.
    overrides: `key.sub=value` strings, value a Python literal or else a string. Overriding one unit
      of a duration replaces whatever unit the file used.
    device_kind: the `device_kind` of the devices that it is for, whose entry in `hardware` is
      applied before the overrides; None for the config as it is written.

  Raises:
    ConfigError: no such file, no get_config in it, or an override that cannot be placed.
  """
  path, colon, arg = path_with_args.partition(".py:")
  path = f"{path}.py" if colon else path
  if not pathlib.Path(path).is_file():
    raise ConfigError(f"--config={path_with_args}: there is no file {path}")
  spec = importlib.util.spec_from_file_location(f"config_{pathlib.Path(path).stem}", path)
  if spec is None:
    raise ConfigError(f"--config={path_with_args}: a config is a Python file, named like x.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={path_with_args}: the file has no get_config(arg=None)")
  config = ml_collections.ConfigDict(module.get_config(arg) if colon else module.get_config())
  config.unlock()
  split = [override.partition("=") for override in overrides]
  for key, equals, _ in split:
    if not equals:
      raise ConfigError(f"--config.{key}: expected --config.{key}=value")
  for key, _, text in sorted(split, key=lambda part: not part[0].startswith("hardware.")):
    if device_kind and not key.startswith("hardware."):
      _use_hardware(config, device_kind)
      device_kind = None
    _set(config, key, text)
  if device_kind:
    _use_hardware(config, device_kind)
  return config


def split_overrides(parser: argparse.ArgumentParser,
                    argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Reads a command line whose options `parser` knows, among `--config.KEY=VALUE` ones.

  Returns:
    The options, and the overrides as "key=value".

  Raises:
    ConfigError: an argument that is neither.
  """
  options, rest = parser.parse_known_args(argv)
  overrides = []
  while rest:
    arg = rest.pop(0)
    if not arg.startswith("--config."):
      known = [a for action in parser._actions for a in action.option_strings]
      near = difflib.get_close_matches(arg.split("=")[0], known, n=1)
      raise ConfigError(f"unknown argument {arg!r}"
                        + (f"; did you mean {near[0]}?" if near else ""))
    if "=" not in arg and rest and not rest[0].startswith("--"):
      arg = f"{arg}={rest.pop(0)}"
    overrides.append(arg.removeprefix("--config."))
  return options, overrides


def resolve(config: Any) -> Config:
  """Checks every key and value of a config, except those that the task and evaluators own."""
  resolved = build(Config, config)
  if resolved.batch_size < 1:
    raise ConfigError(f"config.batch_size={resolved.batch_size}: expected at least 1")
  if resolved.ema is not None and not 0 <= resolved.ema < 1:
    raise ConfigError(f"config.ema={resolved.ema}: expected in [0, 1)")
  accum = resolved.optim.accum_steps
  if accum < 1 or resolved.batch_size % accum:
    raise ConfigError(f"config.optim.accum_steps={accum}: expected a divisor of "
                      f"config.batch_size={resolved.batch_size}")
  for name, least in (("nan_limit", 1), ("stall_seconds", 0.1), ("peer_seconds", 10)):
    value = getattr(resolved, name)
    if value is not None and value < least:
      raise ConfigError(f"config.{name}={value}: expected at least {least}")
  if resolved.profile_steps and min(resolved.profile_steps) < 1:
    raise ConfigError(f"config.profile_steps={resolved.profile_steps}: expected (first step, how "
                      "many), both at least 1")
  if isinstance(resolved.init, str):
    resolved = dataclasses.replace(resolved, init=Init(resolved.init))
  return resolved


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Reads a config's argument, `"runlocal,data=DIR,res=384"`, into the names of `defaults`.

  A name alone means True. Values take the type of the default; where that is None, a literal or
  else a string.

  Raises:
    ConfigError: a name that is not among the defaults, or a value of another type.
  """
  out = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    key, equals, text = part.partition("=")
    if key not in defaults:
      raise ConfigError(unknown_key(f"config argument {part!r}", key, list(defaults)))
    default = defaults[key]
    value = (text if isinstance(default, str) else parse_value(text)) if equals else True
    if default is not None:
      value = build(dataclasses.make_dataclass("Arg", [(key, type(default))]), {key: value},
                    "config argument").__getattribute__(key)
    out[key] = value
  return ml_collections.ConfigDict(out)


def differences(old: dict, new: dict) -> list[str]:
  """What differs between two configs, as `to_dict` gives them, in what a run may not change.

  Returns:
    Lines like "lr: 0.001 -> 0.1".
  """
  free = {*FREE_KEYS, *(f"{k}_{u}" for k in FREE_KEYS for u in UNITS)}
  old, new = ({k: v for k, v in c.items() if k not in free} for c in (old, new))
  old, new = (_flatten({**c, "input": {k: v for k, v in c.get("input", {}).items()
                                       if k not in FREE_INPUT_KEYS}}) for c in (old, new))
  return [f"{k}: {old.get(k, 'not set')!r} -> {new.get(k, 'not set')!r}"
          for k in sorted({*old, *new}) if old.get(k, "not set") != new.get(k, "not set")]


def parse_value(text: str) -> Any:
  """A command line's text as a Python literal if it is one (true, false, none too), else itself."""
  named = {"true": True, "false": False, "none": None}
  if text.lower() in named:
    return named[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, TypeError):
    return text


def _use_hardware(config: ml_collections.ConfigDict, device_kind: str) -> None:
  entries = config.get("hardware") or {}
  for name in entries:
    if name not in hardware.NAMES:
      raise ConfigError(unknown_key(f"config.hardware.{name}", name, list(hardware.NAMES)))
  name = hardware.name(device_kind)
  for key, value in _flatten(to_dict(entries.get(name) or {})).items():
    _put(config, key, value)


def _set(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  node, last = _place(config, key)
  is_text = isinstance(node.get(last), str) and text.lower() != "none"
  _put(config, key, text if is_text else parse_value(text))


def _put(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  node, last = _place(config, key)
  stem, _, unit = last.rpartition("_")
  if unit in UNITS and last not in node:
    for other in UNITS:
      if f"{stem}_{other}" in node:
        del node[f"{stem}_{other}"]
  with node.ignore_type():
    node[last] = value


def _place(config: ml_collections.ConfigDict, key: str) -> tuple[ml_collections.ConfigDict, str]:
  """The group that a setting is in, and its name there."""
  *parents, last = key.split(".")
  node = config
  for depth, name in enumerate(parents):
    if name not in node:
      # A group that the file leaves at its defaults; an unknown one fails when it is resolved.
      node[name] = ml_collections.ConfigDict()
      node.unlock()
    node = node[name]
    if not isinstance(node, ml_collections.ConfigDict):
      raise ConfigError(f"--config.{key}: config.{'.'.join(parents[:depth + 1])} is {node!r}, "
                        "not a group of settings")
  return node, last


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= _flatten(value, f"{prefix}{key}.")
    else:
      out[f"{prefix}{key}"] = value
  return out
