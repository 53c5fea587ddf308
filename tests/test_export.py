"""python -m big_vision_ext.export: what a person types, and what they get."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from big_vision_ext import convert, export, serialize, weights
from big_vision_ext.convert import files, npz
from big_vision_ext.core import checkpoint, trees
from tests.convert import cases

MODEL = {
    "image": dict(width=64, depth=2, mlp_dim=192, num_heads=2, patch_size=16, posemb_grid=(4, 4),
                  scales=(64, 128), max_select_num=8, select_layers=(0, 1), selection_size=56,
                  selection_hidden=16, selection_out=16, selection_depth=1),
    "text": dict(width=32, depth=1, mlp_dim=64, num_heads=2, vocab_size=259, text_len=16)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The directory of a run of task "ps3" with checkpoints of steps 1 and 2, and its parameters."""
  path = tmp_path_factory.mktemp("runs") / "mine"
  params = cases.weights("ps3", weights.describe("ps3", MODEL)).params
  config = {"task": "ps3", "model": MODEL, "total_steps": 2, "batch_size": 16,
            "input": {"data": "data/sample", "image_size": 128, "text_len": 16}}
  checkpoints = checkpoint.Checkpoints(path)
  for step in (1, 2):
    state = jax.tree.map(lambda x, step=step: jnp.asarray(x) * step, trees.nest(dict(params)))
    checkpoints.save(step, {"params": state, "step": jnp.int32(step)}, {"config": config})
  checkpoints.wait()
  checkpoints.close()
  (path / "evaluation.json").write_text(json.dumps({"step": 2.0, "regions/recall": 0.25}))
  return path, params


def test_a_run_is_exported_and_converted_on(run, tmp_path, capsys):
  path, params = run
  for source, format in ((["--workdir", str(path)], "ps3_torch"),
                         (["--weights", str(tmp_path / "ps3_torch")], "npz")):
    assert export.main([*source, "--format", format, "--out", str(tmp_path / format)]) == 0
    assert f"Wrote {tmp_path / format}" in capsys.readouterr().out
    cases.assert_same(convert.read(tmp_path / format).params,
                      {n: x * 2 for n, x in params.items()})
  card = (tmp_path / "npz" / "README.md").read_text()
  for part in ("# mine", "step: 2", "trained on: sample", "examples seen: 32",
               "| regions/recall | 0.25 |", "began from random values", "128 x 128 px"):
    assert part in card, part


def test_step_dtype_layout_and_size_of_files_can_be_chosen(run, tmp_path):
  path, params = run
  argv = ["--workdir", str(path), "--step", "1"]
  assert export.main([*argv, "--format", "npz", "--layout", "scan", "--dtype", "bfloat16",
                      "--out", str(tmp_path / "a")]) == 0
  assert "params/txt/Encoder_0/encoderblock/LayerNorm_0/scale" in np.load(tmp_path / "a/model.npz")
  cases.assert_same(convert.read(tmp_path / "a").params,
                    {n: x.astype(ml_dtypes.bfloat16) for n, x in params.items()})
  # Metrics are of another step.
  assert "None recorded" in (tmp_path / "a" / "README.md").read_text()
  assert export.main([*argv, "--format", "ps3_torch", "--shard_gb", "1e-4",
                      "--out", str(tmp_path / "b")]) == 0
  assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 3
  cases.assert_same(convert.read(tmp_path / "b").params, params)


@pytest.mark.parametrize("argv,message", [
    (["--format", "onnx"], "format 'onnx' is unknown"),
    (["--format", "timm"], "task 'ps3'"),
    (["--format", "npz", "--step", "7"], "no checkpoint of step 7"),
    (["--format", "npz", "--dtype", "int8"], "dtype 'int8'"),
    (["--format", "npz", "--layout", "spiral"], "layout 'spiral'"),
    (["--format", "ps3_torch", "--layout", "scan"], "--layout is for --format npz"),
    (["--format", "ps3_torch", "--shard_gb", "0"], "--shard_gb=0.0"),
    (["--format", "npz", "--shard_gb", "1"], "npz is one file"),
    (["--format", "stablehlo", "--shard_gb", "1"], "stablehlo is one file"),
])
def test_what_is_wrong_with_the_arguments_is_said_in_a_line(run, tmp_path, capsys, argv, message):
  assert export.main(["--workdir", str(run[0]), "--out", str(tmp_path / "e"), *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error
  assert not (tmp_path / "e").exists()


def test_the_encoder_is_exported_as_a_program_with_the_budget_that_was_asked_for(run, tmp_path):
  out = tmp_path / "program"
  argv = ["--workdir", str(run[0]), "--format", "stablehlo", "--out", str(out), "--tokens", "6",
          "--no-prompt", "--platforms", "cpu"]
  assert export.main(argv) == 0
  program = serialize.load(out)
  features = program(np.zeros((3, 128, 128, 3), np.uint8))
  assert features["selected_index"].shape == (3, 6)
  assert export.main(argv) == 0  # An earlier export is replaced.


@pytest.mark.parametrize("argv, message", [
    (["--format", "npz", "--looks", "2"], "--looks is for --format stablehlo, not npz"),
    (["--format", "stablehlo", "--looks", "2", "--tokens", "6"], "give --looks or --tokens"),
    (["--format", "stablehlo", "--dtype", "bfloat16"], "--dtype=bfloat16 is not for"),
    (["--format", "stablehlo", "--platforms", "abacus"], "abacus"),
])
def test_flags_of_a_program_that_do_not_fit_are_named(run, tmp_path, capsys, argv, message):
  assert export.main(["--workdir", str(run[0]), "--out", str(tmp_path / "out"), *argv]) == 2
  assert message in capsys.readouterr().err


def test_damaged_and_absent_weights_are_named(run, tmp_path, capsys):
  assert export.main(["--weights", str(tmp_path / "no"), "--format", "npz",
                      "--out", str(tmp_path / "e")]) == 2
  assert "no: there is no such file or folder" in capsys.readouterr().err
  assert export.main(["--workdir", str(run[0]), "--format", "ps3_torch",
                      "--out", str(tmp_path / "e")]) == 0
  path = tmp_path / "e" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1000])
  assert export.main(["--weights", str(tmp_path / "e"), "--format", "npz",
                      "--out", str(tmp_path / "f")]) == 2
  assert "model.safetensors" in (error := capsys.readouterr().err) and "truncated" in error


def test_a_fine_tuned_classifier_takes_the_names_of_its_classes_along(tmp_path):
  """Of a run with stacked blocks, whose config names the classes and looks at the middle square."""
  model = {"image": dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=8, image_size=32,
                         scan=True), "num_classes": 3}
  described = weights.describe("classify", model)
  params = cases.weights("classify", described).params
  stacked = npz.scan_layout(convert.Tensors(params))
  checkpoints = checkpoint.Checkpoints(tmp_path / "run")
  state = {"params": jax.tree.map(jnp.asarray, trees.nest({n: stacked[n] for n in stacked})),
           "step": jnp.int32(2)}
  names = ["ash", "beech", "cedar"]
  checkpoints.save(2, state, {"config": {
    "task": "classify", "model": model, "total_steps": 2, "batch_size": 8,
    "input": {"data": "nowhere", "image_size": 32, "captions": False, "num_classes": 3,
              "classes": names, "eval_crop": 0.875}}})
  checkpoints.wait()
  checkpoints.close()
  argv = ["--workdir", str(tmp_path / "run"), "--format", "timm", "--out", str(tmp_path / "E")]
  assert export.main(argv) == 0
  config = json.loads((tmp_path / "E/config.json").read_text())
  assert config["label_names"] == names and config["pretrained_cfg"]["crop_pct"] == 0.875
  card = (tmp_path / "E/README.md").read_text()
  assert "ash, beech, cedar" in card and "the square in the middle whose side is 0.875" in card
  cases.assert_same(convert.read(tmp_path / "E").params, params)
  assert export.main([*argv[:2], "--format", "transformers", "--out", str(tmp_path / "F")]) == 2


PROGRAM = """
import resource, sys
from big_vision_ext import convert
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
weights = convert.read(sys.argv[1])
convert.write("ps3_torch", sys.argv[2], weights, shard_bytes=1e8)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_converting_takes_memory_for_one_array_above_the_file(tmp_path):
  """The file is mapped: its pages count as memory while the system has no other use for them."""
  image = dict(MODEL["image"], depth=1, select_layers=(0,))
  model = {"image": image, "text": dict(MODEL["text"], vocab_size=200_000)}
  big = cases.weights("ps3", weights.describe("ps3", model))
  # 26 MB of tokens; 130 MB of positions.
  model["image"] = image = dict(image, scales=(64, 64 * 177))
  described = weights.describe("ps3", model)
  params = dict(big.params) | {
      "img/pos_emb_residual_0": np.ones((1, (4 * 177) ** 2, 64), np.float32)}
  convert.write("npz", tmp_path / "a", convert.Weights(params, "ps3", described))
  size = os.path.getsize(tmp_path / "a" / "model.npz")
  out = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "a"), str(tmp_path / "b")],
                       capture_output=True, text=True, check=True)
  largest = max(x.nbytes for x in params.values())
  # Slack for modules that are imported meanwhile.
  assert 1024 * int(out.stdout) < size + largest + 2**25
  found = files.find(tmp_path / "b", "model")
  assert found.name == "model.safetensors.index.json"
