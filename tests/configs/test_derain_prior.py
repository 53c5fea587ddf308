"""The content prior's config: stages that fit each other, and follow each other to the end."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import optimizers, sharding, trees

ROOT = pathlib.Path(__file__).resolve().parents[2]


def configured(arg):
  """A config's settings, and the names of its task's parameters."""
  config = config_lib.resolve(config_lib.load(f"{ROOT}/configs/derain/prior.py:tiny,{arg}"))
  task = tasks.make(config.task, config.model)
  shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), task.batch_spec(1)))
  return config, shapes


def test_pairs_are_trained_on_and_measured_from_their_config():
  config, shapes = configured("stage=adapt,init=before,pairs,data=data/pairs,steps=2")
  # Smoke runs have fewer steps than a warm-up of the study.
  assert config.schedule.warmup.value < 2
  assert config.input["pairs"] and not config.model.get("degrade")
  assert config.evals["rain"].args["rains"]["seen"] == {"kind": "pairs"}
  first, _ = configured("pairs,data=data/pairs")
  assert not first.input.get("pairs") and "eye" not in shapes


@pytest.mark.parametrize("flags", ["", ",plain", ",critic"])
def test_each_stage_begins_with_all_that_the_one_before_has(flags):
  matches = lambda patterns, name: any(re.fullmatch(p, name) for p in patterns)
  before, trained_parts = None, []
  for stage in ("autoencoder", "adapt", "fuse"):
    config, shapes = configured(
      f"stage={stage}{flags}" + (",init=before" if before is not None else "")
      + (",layers=1" if stage != "autoencoder" and flags != ",plain" else ""))
    names = set(trees.names(shapes))
    # Raises for a pattern that matches nothing.
    trained, _ = optimizers.split(shapes, config.optim.freeze)
    trained_parts.append({n.split("/")[0] for n in trees.names(trained)})
    if before is not None:
      ours = {n for n in names if not matches(config.init.allow_missing, n)}
      before |= {"eye/embed/kernel"} if stage == "adapt" and flags != ",plain" else set()
      theirs = {n for n in before if not matches(config.init.allow_extra, n)}
      assert ours == theirs
      assert all(any(re.fullmatch(p, n) for n in before) for p in config.init.allow_extra)
    before = names
  codes = set() if flags == ",plain" else {"codebook"}
  critic = {"critic"} if flags == ",critic" else set()
  predicted = {"code_transformer"} if codes else set()
  assert trained_parts[0] == {"encoder", "decoder", "to_image"} | codes | critic
  assert trained_parts[1] == {"encoder"} | predicted
  assert trained_parts[2] == {"fuse_level_0", "fuse_level_1"}


@pytest.mark.parametrize("arg, message", [
  ("stage=adopt", "stage='adopt': expected one of autoencoder"),
  ("stage=adapt", "init='': expected the run that stage=adapt begins with"),
  ("init=runs/x", "stage=autoencoder begins with nothing"),
])
def test_an_argument_that_says_no_stage_is_refused(arg, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.load(f"{ROOT}/configs/derain/prior.py:{arg}")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_three_stages_follow_each_other_from_their_config(tmp_path, small_sample_data):
  from big_vision_ext import encode, train

  def run(name, arg):
    argv = ["--config", f"configs/derain/prior.py:runlocal,data={small_sample_data},{arg}",
            "--workdir", str(tmp_path / name)]
    assert train.main(argv) == 0
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return {k: v for line in lines for k, v in json.loads(line).items()}

  last = run("prior", "stage=autoencoder")
  assert 1 <= last["perplexity"] <= 32 and np.isfinite(last["loss"])
  last = run("adapted", f"stage=adapt,layers=1,init={tmp_path}/prior:ema")
  assert 0 <= last["code_accuracy"] <= 1
  last = run("fused", f"stage=fuse,layers=1,init={tmp_path}/adapted")
  assert np.isfinite(last["loss_pixel"])

  # What was trained restores pictures of any size, by tiles.
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (41, 70, 3), dtype=np.uint8)).save(
    tmp_path / "rainy.png")
  assert encode.main(["--task", "restore", "--weights", f"{tmp_path}/fused:ema", "--tile", "32",
                      "--overlap", "8", "--image", str(tmp_path / "rainy.png"),
                      "--out", str(tmp_path / "out")]) == 0
  assert Image.open(tmp_path / "out/rainy.png").size == (70, 41)
