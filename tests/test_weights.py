"""Weights of runs and of files are the same to whoever uses them, and begin a training alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import convert, tasks, weights
from big_vision_ext.convert import ours
from big_vision_ext.convert.lazy import ConvertError
from big_vision_ext.core import checkpoint, config, sharding, trees
from big_vision_ext.models import layouts, vit
from tests.convert import cases, clip_towers

SIGLIP = {"image": {"variant": "mu/8", "image_size": 32},
          "text": {"variant": "mu", "vocab_size": 259, "text_len": 8}}


def save_run(path, task, model, params, *, steps=(5,), **extra):
  """A run's directory whose checkpoints hold `params` times their step."""
  written = {"task": task, "model": model, "total_steps": 9, "batch_size": 8,
             "input": {"data": "/some/where/sample", "image_size": 32}, **extra.pop("config", {})}
  checkpoints = checkpoint.Checkpoints(path)
  for step in steps:
    state = jax.tree.map(lambda x, step=step: jnp.asarray(x) * step, trees.nest(params))
    checkpoints.save(step, {"params": state, "step": jnp.int32(step)}, {"config": written, **extra})
  checkpoints.wait()
  checkpoints.close()
  return path


@pytest.fixture(scope="module")
def siglip():
  described = weights.describe("siglip", SIGLIP)
  return cases.weights("siglip", described)


@pytest.fixture(scope="module")
def run(siglip, tmp_path_factory):
  return save_run(tmp_path_factory.mktemp("run"), "siglip", SIGLIP, siglip.params, steps=(2, 5))


def test_a_run_and_its_export_load_alike(run, siglip, tmp_path):
  of_run = weights.load(run)
  assert of_run.step == 5 and of_run.task_name == "siglip" and of_run.source == str(run)
  convert.write("npz", tmp_path / "e", weights.read(run))
  of_file = weights.load(tmp_path / "e")
  assert of_file.step is None and of_file.evals == {}
  cases.assert_same(trees.flatten(of_file.params), trees.flatten(of_run.params))
  cases.assert_same(trees.flatten(of_run.params), {n: x * 5 for n, x in siglip.params.items()})
  assert of_file.input["tokenizer"] == "bytes" and of_file.input["text_len"] == 64
  batch = {"image": np.full((1, 32, 32, 3), 7, np.uint8), "text": np.ones((1, 8), np.int32)}
  for loaded in (of_run, of_file):
    task = tasks.make(loaded.task_name, loaded.model)
    assert task.embed_text(loaded.params, batch).shape == (1, 32)


def test_a_step_can_be_chosen(run, siglip):
  cases.assert_same(trees.flatten(weights.load(run, 2).params),
                    {n: x * 2 for n, x in siglip.params.items()})
  assert weights.load(run / "checkpoints" / "2").step == 2
  with pytest.raises(ValueError, match="no checkpoint of step 3"):
    weights.load(run, 3)


def test_sizes_and_defaults_are_written_out(run):
  found = weights.read(run)
  image = found.model["image"]
  assert (image["width"], image["depth"], image["mlp_dim"], image["num_heads"]) == (32, 1, 128, 2)
  assert image["patch_size"] == 8 and image["image_size"] == 32 and "variant" not in image
  assert image["act"] == "gelu_tanh" and "scan" not in image
  assert found.meta["data"] == "sample" and found.meta["examples"] == 40


def test_a_stacked_run_is_read_block_by_block(siglip, tmp_path):
  scan = {k: {**v, "scan": True} for k, v in SIGLIP.items()}
  stacked = trees.flatten(layouts.loop_to_scan(trees.nest(dict(siglip.params))))
  run = save_run(tmp_path / "run", "siglip", scan, stacked, steps=(1,))
  cases.assert_same(weights.read(run).params, siglip.params)
  assert "encoderblock" in weights.load(run).params["img"]["Transformer"]


def test_absent_temperature_and_bias_begin_at_their_initial_values(siglip, tmp_path):
  model = cases.PS3["named"]
  found = cases.weights("ps3", model)
  params = {n: x for n, x in found.params.items() if n not in ("t", "b")}
  convert.write("ps3_torch", tmp_path / "e", convert.Weights(params, "ps3", model))
  loaded = weights.load(tmp_path / "e").params
  np.testing.assert_allclose(loaded["t"], [np.log(10)], rtol=1e-7)
  assert loaded["b"].tolist() == [-10.0]


def test_paths_without_weights_are_named(run, tmp_path):
  with pytest.raises(ConvertError, match="nowhere: there is no such file or folder"):
    weights.load(tmp_path / "nowhere")
  with pytest.raises(ConvertError, match="is empty; expected a run's directory"):
    weights.load(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(checkpoint.CheckpointError, match="has no checkpoint"):
    weights.load(tmp_path)
  convert.write("npz", tmp_path / "e", weights.read(run))
  with pytest.raises(ConvertError, match="has no steps"):
    weights.load(tmp_path / "e", 3)
  with pytest.raises(ConvertError, match="not those of a whole model"):
    weights.load(f"{tmp_path / 'e' / 'model.npz'}:img")


def test_an_image_tower_alone_is_no_model_to_load(siglip, tmp_path):
  convert.write("timm", tmp_path / "e", siglip)
  with pytest.raises(ConvertError, match="an image tower alone"):
    weights.load(tmp_path / "e")
  convert.write("npz", tmp_path / "npz", weights.read(tmp_path / "e"))
  alone = {n: x for n, x in siglip.params.items() if n.startswith("img/")}
  cases.assert_same(weights.read(tmp_path / "npz").params, alone)


class TestInit:
  """`config.init` from every kind of source."""

  def load(self, model, path, task="siglip", **settings):
    params = trees.nest({n: jnp.full(shape, 0.125) for n, shape in
                         ours.shapes(task, weights.describe(task, model)).items()})
    if model["image"].get("scan"):
      params = layouts.loop_to_scan(params)
    place = sharding.replicated(sharding.make_mesh(config.Mesh()))
    places = jax.tree.map(lambda _: place, params)
    init = config.Init(str(path), **settings)
    filled, origin = weights.init_params(init, params, places)
    return {n: np.asarray(x) for n, x in trees.flatten(filled).items()}, origin

  @pytest.mark.parametrize("format", [f for f in convert.FORMATS if f not in (
      "focusmim", "uniqa", "restoration")])
  @pytest.mark.parametrize("scan", [False, True])
  def test_every_format_begins_a_run_of_either_layout(self, siglip, tmp_path, format, scan):
    task, model, found = "siglip", SIGLIP, siglip
    if format == "ps3_torch":
      task, model = "ps3", cases.PS3["named"]
      found = cases.weights(task, model)
    if format == "mae":
      # Of a width whose number of heads is known, as its files do not tell it.
      task, model = "mae", cases.MAE | {"image": cases.MAE["image"] | dict(width=192, num_heads=3)}
      found = cases.weights(task, model)
    if format == "ijepa":
      task, model = "ijepa", cases.IJEPA
      found = cases.weights(task, model)
    if format == "openai_clip":
      task, model, found = "clip", clip_towers.MODEL, clip_towers.weights()
    convert.write(format, tmp_path / "e", found)
    if scan:
      model = model | {k: {**model[k], "scan": True} for k in ("image", "text") if k in model}
    # timm has the image tower alone.
    settings = {"allow_missing": ("txt/.*", "t", "b")} if format == "timm" else {}
    params, origin = self.load(model, tmp_path / "e", task, **settings)
    want = trees.nest(dict(found.params))
    want = trees.flatten(layouts.loop_to_scan(want) if scan else want)
    for name in want:
      if format == "timm" and not name.startswith("img/"):
        assert (params[name] == 0.125).all()
      else:
        np.testing.assert_array_equal(params[name], want[name], err_msg=name)
    assert origin["format"] == format and origin["licence"] == "unknown"

  def test_a_convolutional_autoencoder_begins_a_run(self, tmp_path):
    model = {"image": dict(widths=(4, 6), depth=2, image_size=32)}
    found = cases.weights("focusmim", model)
    convert.write("focusmim", tmp_path / "e", found)
    params, origin = self.load(model, tmp_path / "e", "focusmim")
    cases.assert_same(params, found.params)
    assert origin["format"] == "focusmim"

  def test_a_run_begins_a_run_of_the_other_layout(self, run, siglip):
    model = {k: {**v, "scan": True} for k, v in SIGLIP.items()}
    params, origin = self.load(model, run)
    want = trees.flatten(layouts.loop_to_scan(trees.nest(dict(siglip.params))))
    for name in want:
      np.testing.assert_array_equal(params[name], want[name] * 5)
    assert "step 5" in origin["format"]

  def test_differences_are_listed_by_name(self, siglip, tmp_path):
    convert.write("npz", tmp_path / "e", siglip)
    model = {**SIGLIP, "text": {**SIGLIP["text"], "vocab_size": 300}}
    with pytest.raises(checkpoint.CheckpointError, match="txt/Embed_0/embedding: it has "):
      self.load(model, tmp_path / "e")
    deeper = {**SIGLIP, "image": {**SIGLIP["image"], "depth": 2}}
    with pytest.raises(checkpoint.CheckpointError, match=r"missing in it \(16\)"):
      self.load(deeper, tmp_path / "e")

  def test_names_are_mapped_and_may_be_missing(self, siglip, tmp_path):
    convert.write("npz", tmp_path / "e", siglip)
    params, _ = self.load(SIGLIP, f"{tmp_path / 'e' / 'model.npz'}:img",
                          map=(("(.*)", r"img/\1"),), allow_missing=("txt/.*", "t", "b"))
    np.testing.assert_array_equal(params["img/pos_embedding"], siglip.params["img/pos_embedding"])
    assert (params["t"] == 0.125).all()

  @pytest.mark.parametrize("size", [16, 56])
  def test_a_position_table_of_another_size_is_resized_when_asked_and_else_refused(
      self, siglip, tmp_path, size):
    convert.write("npz", tmp_path / "e", siglip)
    model = {**SIGLIP, "image": {**SIGLIP["image"], "image_size": size}}
    with pytest.raises(checkpoint.CheckpointError,
                       match="(?s)img/pos_embedding: it has .*config.init.resize_posemb=True"):
      self.load(model, tmp_path / "e")
    params, _ = self.load(model, tmp_path / "e", resize_posemb=True)
    # What the model itself takes for an image of that size from the table it was trained with.
    tower = vit.build(vit.ViT, SIGLIP["image"])
    image = {n: x for n, x in siglip.params.items() if n.startswith("img/")}
    table = tower.apply({"params": trees.nest(image)["img"]}, size // 8, size // 8,
                        method="posemb")
    np.testing.assert_allclose(params["img/pos_embedding"][0], table, rtol=1e-6)

  def test_position_tables_of_scales_are_resized_too(self, tmp_path):
    model = cases.PS3["named"]
    found = cases.weights("ps3", model)
    convert.write("ps3_torch", tmp_path / "e", found)
    larger = {**model, "image": {**model["image"], "scales": [64, 128, 512]}}
    with pytest.raises(checkpoint.CheckpointError, match="(?s)residual_1: it has .*resize"):
      self.load(larger, tmp_path / "e", "ps3")
    params, _ = self.load(larger, tmp_path / "e", "ps3", resize_posemb=True)
    assert params["img/pos_emb_residual_1"].shape == (1, 1024, 64)
    np.testing.assert_array_equal(params["img/pos_emb_residual_0"],
                                  found.params["img/pos_emb_residual_0"])

  def test_texts_of_another_length_are_never_resized(self, siglip, tmp_path):
    convert.write("npz", tmp_path / "e", siglip)
    model = {**SIGLIP, "text": {**SIGLIP["text"], "text_len": 16}}
    with pytest.raises(checkpoint.CheckpointError, match="txt/pos_embedding: it has"):
      self.load(model, tmp_path / "e", resize_posemb=True)


@pytest.mark.parametrize("head,licence", [
    ("---\nlicense: apache-2.0\ntags: [x]\n---\n# SigLIP", "apache-2.0"),
    ("---\nlicense: other\nlicense_name: nvidia-licence\n---\n", "other, nvidia-licence"),
    ("# license: mine\n", "unknown"), (None, "unknown")])
def test_the_licence_of_a_start_is_what_its_card_says(tmp_path, head, licence):
  if head is not None:
    (tmp_path / "README.md").write_text(head)
  assert weights.licence(tmp_path) == licence == weights.licence(tmp_path / "model.safetensors")


def test_what_a_run_began_from_goes_into_what_is_exported_of_it(siglip, tmp_path):
  start = {"path": "a", "format": "a run of big_vision_ext, step 1", "licence": "that of its data",
           "init": [{"path": "b", "format": "transformers", "licence": "apache-2.0", "init": []}]}
  run = save_run(tmp_path / "run", "siglip", SIGLIP, siglip.params, init=[start])
  found = weights.read(run).meta
  assert [x["path"] for x in found["init"]] == ["a", "b"]
  plain = save_run(tmp_path / "plain", "siglip", SIGLIP, siglip.params)
  assert weights.read(plain).meta["from_scratch"]
  old = save_run(tmp_path / "old", "siglip", SIGLIP, siglip.params, config={"init": "somewhere"})
  assert weights.read(old).meta["init"] == [{"path": "somewhere", "licence": "unknown"}]
