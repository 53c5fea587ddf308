import dataclasses
import pathlib
from typing import Literal

import ml_collections
import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core.config import ConfigError, Duration, resolve

MINIMAL = {"task": "siglip", "total_steps": 100, "batch_size": 8}


@dataclasses.dataclass(frozen=True)
class Inner:
  width: int = 3
  ratio: tuple[float, float] = (0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Outer:
  name: str
  inner: Inner = Inner()
  maybe: int | None = None
  data: str | dict[str, dict] = ""
  kind: Literal["cat", "dog"] = "cat"
  many: tuple[int, ...] = ()
  flag: bool = False
  rate: float = 0.5


def build(**values):
  return config_lib.build(Outer, {"name": "x", **values}, "config.model")


def test_a_nested_dict_becomes_typed_dataclasses():
  got = build(inner={"width": 5, "ratio": [1, 2]}, maybe=4, data={"a": {"path": "p"}}, many=[1, 2],
              rate=1)
  assert got == Outer("x", Inner(5, (1, 2)), 4, {"a": {"path": "p"}}, many=(1, 2), rate=1)
  assert isinstance(got.many, tuple) and isinstance(got.inner.ratio, tuple)
  assert config_lib.build(Outer, ml_collections.ConfigDict({"name": "x", "inner": {"width": 2}}),
                          "config") == Outer("x", Inner(2))


@pytest.mark.parametrize("values,message", [
    ({"inner": {"widht": 5}}, r"config.model.inner.widht: .* did you mean 'width'"),
    ({"zzz": 5}, r"config.model.zzz: there is no such setting; known are data, flag"),
    ({"inner": {"width": "5"}}, r"config.model.inner.width='5': expected int, got str"),
    ({"inner": {"width": 5.0}}, r"config.model.inner.width=5.0: expected int, got float"),
    ({"inner": {"width": True}}, r"config.model.inner.width=True: expected int, got bool"),
    ({"inner": 3}, r"config.model.inner=3: expected a mapping"),
    ({"inner": {"ratio": (1, 2, 3)}}, r"config.model.inner.ratio=.*expected 2 values"),
    ({"inner": {"ratio": (1, "a")}}, r"config.model.inner.ratio\[1\]='a': expected float, got str"),
    ({"maybe": "a"}, r"config.model.maybe='a': expected int or None, got str"),
    ({"data": {"a": 3}}, r"config.model.data.a=3: expected dict, got int"),
    ({"kind": "dgo"}, r"config.model.kind='dgo': expected one of 'cat', 'dog'; did you mean 'dog'"),
    ({"many": 3}, r"config.model.many=3: expected tuple"),
    ({"flag": 1}, r"config.model.flag=1: expected True or False, got int"),
    ({"rate": None}, r"config.model.rate=None: expected float, got NoneType"),
])
def test_a_wrong_setting_is_an_error_with_its_full_path(values, message):
  with pytest.raises(ConfigError, match=message):
    build(**values)


def test_a_missing_setting_is_an_error_with_its_type():
  with pytest.raises(ConfigError, match=r"config.model.name must be given \(str\)"):
    config_lib.build(Outer, {}, "config.model")


def test_a_config_survives_being_written_and_read():
  config = resolve({**MINIMAL, "input": {"data": "d"}, "optim": {"lr_mults": [["a.*", 0.1]]},
                    "schedule": {"type": "rsqrt", "timescale_examples": 100.5},
                    "init": {"path": "p", "map": [("a", "b")]}, "keep_ckpt_epochs": 2,
                    "evals": {"e": {"type": "t", "eval_percent": 5.0, "ks": (1, 5)}}})
  assert resolve(config_lib.to_dict(config)) == config
  assert config.evals["e"].eval == Duration(5, "percent") and config.evals["e"].args == {
      "ks": (1, 5)}


@pytest.mark.parametrize("changes,message", [
    ({"total_steps": None}, "one of total_steps, total_epochs, total_examples, total_percent must"),
    ({"total_epochs": 2}, "total_steps and total_epochs are both given; keep exactly one"),
    ({"total_steps": "many"}, "config.total_steps='many': expected float, got str"),
    ({"batch_size": 0}, "config.batch_size=0: expected at least 1"),
    ({"optim": {"accum_steps": 3}}, "config.optim.accum_steps=3: expected a divisor of .*=8"),
    ({"schedule": {"warmup_stepz": 3}}, "config.schedule.warmup_stepz.*mean 'warmup_steps'"),
    ({"evals": {"e": {"typ": "t"}}}, "config.evals.e.type must be given"),
])
def test_a_config_that_cannot_be_is_an_error(changes, message):
  with pytest.raises(ConfigError, match=message):
    resolve({**MINIMAL, **changes})


def test_durations_become_steps():
  known = dict(batch_size=8, epoch_examples=100, total_steps=1000)
  assert Duration(10, "steps").steps(**known) == 10
  assert Duration(80, "examples").steps(**known) == 10
  assert Duration(2, "epochs").steps(**known) == 25
  assert Duration(5, "percent").steps(**known) == 50
  assert Duration(1, "examples").steps(**known) == 1  # never rounded to nothing
  assert Duration(0, "epochs").steps(**known) == 0
  with pytest.raises(ConfigError, match="config.total_percent: .* needs the run's length"):
    Duration(5, "percent").steps(batch_size=8, name="total")
  with pytest.raises(ConfigError, match="between 0 and 100"):
    Duration(101, "percent").steps(**known)
  with pytest.raises(ConfigError, match="config.warmup_steps=-1"):
    Duration(-1, "steps").steps(batch_size=8, name="warmup")


class TestLoad:

  def load(self, tmp_path, *overrides, arg=""):
    path = tmp_path / "x.py"
    path.write_text(
        "from big_vision_ext.core import config as c\n"
        "def get_config(arg=None):\n"
        "  a = c.parse_arg(arg, data='d', small=False, width=4)\n"
        "  out = c.base_config()\n"
        "  out.task, out.batch_size, out.total_epochs = 'siglip', 8, 10\n"
        "  out.input.data = a.data\n"
        "  out.model = dict(width=a.width, small=a.small)\n"
        "  return out\n")
    return config_lib.load(f"{path}{arg}", overrides)

  def test_arguments_and_overrides_are_applied(self, tmp_path):
    config = resolve(self.load(
        tmp_path, "input.data=3", "model.width=7", "optim.b2=0.95", "total_steps=5", "seed=2",
        "optim.freeze=('a.*',)", "optim.clip_norm=none", arg=":small,width=6"))
    assert config.input == {"data": "3"}  # text stays text
    assert config.model == {"width": 7, "small": True}
    assert config.optim.b2 == 0.95 and config.optim.freeze == ("a.*",)
    assert config.optim.clip_norm is None and config.seed == 2
    assert config.total == Duration(5, "steps")  # and no longer ten epochs

  @pytest.mark.parametrize("arg,message", [
      (":smal", "config argument 'smal': .* did you mean 'small'"),
      (":width=wide", "config argument.width='wide': expected int"),
  ])
  def test_a_wrong_argument_is_an_error(self, arg, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
      self.load(tmp_path, arg=arg)

  @pytest.mark.parametrize("override,message", [
      ("lrr=1", "config.lrr: .* did you mean 'lr'"),
      ("optm.b1=1", "config.optm: .* did you mean 'optim'"),
      ("task.x=1", "--config.task.x: config.task is 'siglip', not a group"),
      ("lr", "--config.lr: expected --config.lr=value"),
  ])
  def test_a_wrong_override_is_an_error(self, override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
      resolve(self.load(tmp_path, override))

  def test_a_file_that_is_no_config_is_an_error(self, tmp_path):
    with pytest.raises(ConfigError, match="there is no file .*nowhere.py"):
      config_lib.load(str(tmp_path / "nowhere.py:a"))
    path = pathlib.Path(tmp_path / "y.py")
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no get_config"):
      config_lib.load(str(path))


def test_only_what_decides_the_parameters_counts_as_a_difference():
  old = config_lib.to_dict(resolve({**MINIMAL, "input": {"data": "d", "threads": 2}}))
  free = config_lib.to_dict(resolve({
      **MINIMAL, "total_steps": 200, "log_steps": 1, "ckpt_epochs": 1, "mesh": {"fsdp": 2},
      "input": {"data": "d", "threads": 5}, "evals": {"e": {"type": "t"}}, "nan_policy": "skip"}))
  assert config_lib.differences(old, free) == []
  other = config_lib.to_dict(resolve({
      **MINIMAL, "lr": 0.5, "model": {"width": 2}, "optim": {"b2": 0.9},
      "input": {"data": "e", "threads": 5}}))
  assert config_lib.differences(old, other) == [
      "input.data: 'd' -> 'e'", "lr: 0.001 -> 0.5", "model.width: 'not set' -> 2",
      "optim.b2: 0.999 -> 0.9"]


HARDWARE_FILE = """
import ml_collections

def get_config(arg=None):
  return ml_collections.ConfigDict({
      "task": "siglip", "total_steps": 100, "batch_size": 8, "model": {"image": {"depth": 2}},
      "hardware": {"v5e": {"mesh": {"fsdp": 4}, "model": {"image": {"depth": 3}},
                           "total_examples": 80},
                   "cpu": {"batch_size": 2}}})
"""


def test_settings_for_a_kind_of_device_are_used_on_it_alone_and_the_command_line_wins(tmp_path):
  file = tmp_path / "c.py"
  file.write_text(HARDWARE_FILE)

  def on(kind, *overrides):
    return resolve(config_lib.load(str(file), overrides, device_kind=kind))

  plain, cpu, tpu = on(None), on("cpu"), on("TPU v5 lite")
  assert (plain.batch_size, cpu.batch_size, tpu.batch_size) == (8, 2, 8)
  assert on("TPU v4") == plain and tpu.model["image"]["depth"] == 3 and tpu.mesh.fsdp == 4
  assert tpu.total == Duration(80, "examples") and cpu.total == Duration(100, "steps")
  assert on("cpu", "batch_size=4").batch_size == 4
  assert on("cpu", "batch_size=4", "hardware.cpu.lr=0.5").lr == 0.5
  with pytest.raises(ConfigError, match="config.hardware.v6: .* did you mean 'v6e'"):
    on("cpu", "hardware.v6.lr=1.0")
  with pytest.raises(ConfigError, match="config.mesh.fspd: .* did you mean 'fsdp'"):
    on("cpu", "hardware.cpu.mesh.fspd=2")


def test_an_average_that_never_moves_is_refused():
  with pytest.raises(ConfigError, match=r"config.ema=1.0: expected in \[0, 1\)"):
    resolve(MINIMAL | {"ema": 1.0})
