"""Configs say what they said: a refactor cannot change an experiment without this test noticing.

After a deliberate change: `python tests/configs/test_configs.py` writes the golden texts anew; the
difference belongs into the same commit.
"""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))

from big_vision_ext import tasks, train
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import typed
from input_pipeline import examples, loader
from tests import toy_classes, toy_ratings

GOLDEN = pathlib.Path(__file__).parent / "golden"
# common.py holds what several configs share and is none itself, grid.py names others.
CONFIGS = sorted(p for p in ROOT.glob("configs/*/*.py") if p.name not in ("common.py", "grid.py"))
NAMES = [f"{p.parent.name}_{p.stem}" for p in CONFIGS]
# Shrunk, they are another one's program but for a number of scales, a layout or a vocabulary, which
# a third one has; or other tests train them.
ALIKE = (
  "ps3_ps3_1p5k_siglip_so400m", "ps3_ps3_1p5k_siglip2_so400m", "ps3_ps3_4k_siglip_so400m",
  "ps3_ps3_4k_cradio_l", "mim_mae_l16", "mim_mae_h14", "mim_pixio_h16", "siglip_so400m14_384",
  "siglip_demo_lowres", "uniqa_demo", "derain_prior", "ps3_own_data", "cdasr_meta")
RUN = [pytest.param(path, id=name, marks=pytest.mark.thorough if name in ALIKE else ())
       for path, name in zip(CONFIGS, NAMES)]


def _text(path: pathlib.Path) -> str:
  config = config_lib.resolve(config_lib.load(str(path)))
  return json.dumps(config_lib.to_dict(config), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_config_says_what_it_said(path):
  golden = GOLDEN / f"{path.parent.name}_{path.stem}.json"
  assert _text(path) == golden.read_text(), f"deliberate? then run: python {__file__}"


def test_no_golden_text_outlives_its_config():
  assert sorted(p.stem for p in GOLDEN.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("arg", ["", ":runlocal"])
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_configs_model_and_input_fit_each_other(path, arg):
  config = config_lib.resolve(config_lib.load(f"{path}{arg}"))
  task = tasks.make(config.task, config.model)
  inputs = typed.build(loader.InputConfig, config.input, "config.input")
  spec = task.batch_spec(config.batch_size)
  side, length, several = inputs.image_size, inputs.text_len, inputs.captions_per_image
  captions = (config.batch_size, several) if several > 1 else (config.batch_size,)
  assert spec["image"].shape == (config.batch_size, side, side, 3)
  assert inputs.captions == ("text" in spec)
  if not inputs.captions:
    batch = examples.ExampleMaker(inputs).allocate(1)
    assert {k: (s.shape, s.dtype) for k, s in task.batch_spec(1).items()} == {
      k: (v.shape, v.dtype) for k, v in batch.items()}
    if inputs.num_classes:
      assert task.config.num_classes == inputs.num_classes
    return
  assert spec["text"].shape == (*captions, length)
  assert inputs.max_boxes == (spec["boxes"].shape[1] if "boxes" in spec else 0)


@pytest.mark.parametrize("arg", ["tiles=64", "runlocal,tiles=64"])
@pytest.mark.parametrize(
  "path", sorted(ROOT.glob("configs/ps3/ps3_4k_*.py")), ids=lambda path: path.stem)
def test_a_4k_model_trained_on_tiles_wants_the_batches_that_its_input_gives(path, arg):
  config = config_lib.resolve(config_lib.load(f"{path}:{arg}"))
  spec = tasks.make(config.task, config.model).batch_spec(1)
  inputs = typed.build(loader.InputConfig, config.input | {"tokenizer": "bytes"}, "config.input")
  batch = examples.ExampleMaker(inputs).allocate(1)
  assert "tiles" in spec
  assert {k: (s.shape, s.dtype) for k, s in spec.items()} == {
    k: (v.shape, v.dtype) for k, v in batch.items()}


@pytest.mark.parametrize("arg", [
  "foreground=boxes,jitter", "mask=periphery,attention=foreground,foreground=mask,finetune"])
def test_focusmim_with_foreground_wants_the_batches_that_its_input_gives(arg):
  config = config_lib.resolve(config_lib.load(f"{ROOT}/configs/mim/focusmim.py:{arg}"))
  inputs = typed.build(loader.InputConfig, config.input, "config.input")
  assert bool(inputs.jitter) == ("jitter" in arg)
  assert ("finetune" in config.evals) == ("finetune" in arg)
  batch = examples.ExampleMaker(inputs).allocate(1)
  spec = tasks.make(config.task, config.model).batch_spec(1)
  assert {k: (s.shape, s.dtype) for k, s in spec.items()} == {
    k: (v.shape, v.dtype) for k, v in batch.items()}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_configs_header_has_its_command_and_its_source(path):
  header = path.read_text().split('"""')[1]
  assert f"{path.relative_to(ROOT)}" in header and "python -m big_vision_ext.train" in header
  assert "runlocal" in header


def test_what_is_seldom_run_is_a_config():
  assert set(ALIKE) <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN)
@pytest.mark.usefixtures("one_device")
def test_a_config_runs_locally_on_the_sample_data(path, tmp_path, small_sample_data):
  arg = f"data={small_sample_data}"
  if "num_classes" in config_lib.load(str(path)).input:
    # The sample's canvases are of no class.
    arg = f"classes=3,data={toy_classes.write(tmp_path / 'data')}"
  if config_lib.load(str(path)).input.get("scores"):
    arg = f"data={toy_ratings.write(tmp_path / 'data')}"
  argv = ["--config", f"{path}:runlocal,{arg}", "--workdir", str(tmp_path / "run")]
  assert train.main(argv) == 0
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert any("loss" in line for line in lines)


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for config_path, config_name in zip(CONFIGS, NAMES):
    (GOLDEN / f"{config_name}.json").write_text(_text(config_path))
