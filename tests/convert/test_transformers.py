"""transformers' SigLIP: what is written is read again bit by bit, and what is wrong is named.

That the library itself agrees is tested in tests/oracles/test_siglip_parity.py.
"""

import json

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import ConvertError, Tensors, files
from tests.convert import siglip_towers as towers


@pytest.fixture
def folder(tmp_path):
  """An export of a tiny model."""
  convert.write("transformers", tmp_path / "E", towers.weights())
  return tmp_path / "E"


def rewrite(folder, change):
  """Applies `change` to the dict of arrays in a folder."""
  file = folder / "model.safetensors"
  arrays = {name: np.array(x) for name, x in files.read_tensors(file).items()}
  change(arrays)
  found = Tensors(arrays)
  files.write_safetensors(file, {name: found.lazy(name) for name in found})


def edit(folder, change):
  """Applies `change` to config.json; our own note goes, as if the folder were the library's."""
  config = json.loads((folder / "config.json").read_text())
  change(config)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "export.json").unlink(missing_ok=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_trip_keeps_every_bit(tmp_path, dtype):
  first = towers.weights(seed=1)
  convert.write("transformers", tmp_path / "a", first, dtype=dtype, shard_bytes=20_000)
  assert (tmp_path / "a" / "model.safetensors.index.json").is_file()
  once = convert.read(tmp_path / "a")
  want = {n: x.astype(convert.DTYPES[dtype]) for n, x in first.params.items()}
  towers.assert_same_bits(once.params, want)
  convert.write("transformers", tmp_path / "b", once)
  towers.assert_same_bits(convert.read(tmp_path / "b").params, want)


def test_arrays_are_turned_as_the_library_has_them(folder):
  ours, theirs = towers.draw(towers.MODEL), files.read_tensors(folder / "model.safetensors")
  attention = "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
  # Output o of a projection into heads is number o % 16 of head o // 16.
  q = theirs["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
  assert q[37, 5] == ours[f"{attention}/query/kernel"][5, 37 // 16, 37 % 16]
  out = theirs["vision_model.encoder.layers.1.self_attn.out_proj.weight"]
  assert out[5, 37] == ours[f"{attention}/out/kernel"][37 // 16, 37 % 16, 5]
  patch = theirs["vision_model.embeddings.patch_embedding.weight"]
  assert patch[9, 2, 3, 6] == ours["img/embedding/kernel"][3, 6, 2, 9]
  packed = theirs["vision_model.head.attention.in_proj_weight"]
  value = ours["img/MAPHead_0/MultiHeadDotProductAttention_0/value/kernel"]
  assert packed[2 * 48 + 20, 7] == value[7, 20 // 16, 20 % 16]
  assert theirs["text_model.head.weight"].shape == (48, 32)
  assert theirs["logit_scale"] == ours["t"] and theirs["logit_bias"] == ours["b"]


def test_the_config_says_what_the_model_is(folder):
  read = convert.read(folder)
  assert read.task == "siglip"
  assert {k: read.model["image"][k] for k in towers.IMAGE} == towers.IMAGE
  assert {k: read.model["text"][k] for k in towers.TEXT} == towers.TEXT
  assert read.input["image_size"] == 32 and read.input["mean"] == [0.5] * 3
  config = json.loads((folder / "config.json").read_text())
  assert config["text_config"]["projection_size"] == 48
  processor = json.loads((folder / "preprocessor_config.json").read_text())
  assert processor["size"] == {"height": 32, "width": 32}
  assert processor["resample"] == 3


@pytest.mark.parametrize("act, theirs", [("gelu_tanh", "gelu_pytorch_tanh"), ("gelu", "gelu")])
def test_both_gelus_are_told_apart(tmp_path, act, theirs):
  model = towers.MODEL | dict(image=towers.IMAGE | {"act": act})
  convert.write("transformers", tmp_path / "E", towers.weights(model))
  config = json.loads((tmp_path / "E" / "config.json").read_text())
  assert config["vision_config"]["hidden_act"] == theirs
  assert config["text_config"]["hidden_act"] == "gelu_pytorch_tanh"
  edit(tmp_path / "E", lambda c: None)
  assert convert.read(tmp_path / "E").model["image"]["act"] == act


def test_what_a_config_leaves_out_is_at_the_defaults_of_the_library(folder):
  def published(config):
    del config["text_config"]["hidden_act"], config["vision_config"]["layer_norm_eps"]
    del config["vision_config"]["num_channels"], config["text_config"]["pad_token_id"]

  edit(folder, published)
  read = convert.read(folder)
  assert read.model["text"]["act"] == "gelu_tanh" and "ln_eps" not in read.model["image"]
  towers.assert_same_bits(read.params, towers.draw(towers.MODEL))


def test_buffers_of_old_versions_are_left_out(folder):
  rewrite(folder, lambda x: x.update({
    "text_model.embeddings.position_ids": np.arange(10)[None],
    "vision_model.embeddings.position_ids": np.arange(16)[None]}))
  towers.assert_same_bits(convert.read(folder).params, towers.draw(towers.MODEL))


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_vision_model_is_read_in_its_old_and_new_names(folder, prefix):
  def alone(arrays):
    kept = {n: x for n, x in arrays.items() if n.startswith("vision_model.")}
    arrays.clear()
    arrays.update({prefix + n.removeprefix("vision_model."): x for n, x in kept.items()})

  def config(config):
    vision = config["vision_config"]
    config.clear()
    config.update(vision)

  rewrite(folder, alone)
  edit(folder, config)
  read = convert.read(folder)
  assert read.model["text"] is None
  want = {n: x for n, x in towers.draw(towers.MODEL).items() if n.startswith("img/")}
  towers.assert_same_bits(read.params, want)


def test_a_naflex_model_goes_both_ways_with_its_patches_as_rows(tmp_path):
  source = towers.weights(meta={"model_type": "siglip2"})
  convert.write("transformers", tmp_path / "E", source)
  theirs = files.read_tensors(tmp_path / "E" / "model.safetensors")
  rows = theirs["vision_model.embeddings.patch_embedding.weight"]
  assert rows.shape == (48, 192)
  kernel = source.params["img/embedding/kernel"]
  # A patch is read row by row, pixel by pixel, channels together.
  assert rows[9, (3 * 8 + 6) * 3 + 2] == kernel[3, 6, 2, 9]
  edit(tmp_path / "E", lambda c: None)
  read = convert.read(tmp_path / "E")
  assert read.model["image"]["image_size"] == 32 and read.meta["model_type"] == "siglip2"
  towers.assert_same_bits(read.params, dict(source.params))


def test_all_that_is_missing_extra_and_misshapen_is_listed_by_name(folder):
  def spoil(arrays):
    del arrays["text_model.final_layer_norm.bias"]
    arrays["text_model.surplus"] = np.zeros(3, np.float32)
    name = "vision_model.embeddings.position_embedding.weight"
    arrays[name] = arrays[name][:9]

  rewrite(folder, spoil)
  with pytest.raises(ConvertError) as error:
    convert.read(folder)
  said = str(error.value)
  for part in ("missing", "text_model.final_layer_norm.bias", "extra", "text_model.surplus",
               "misshapen", "position_embedding.weight", "[9, 48]", "[16, 48]"):
    assert part in said


def test_a_truncated_file_is_refused_by_name(folder):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-1000])
  with pytest.raises(ConvertError, match="model.safetensors.*truncated"):
    convert.read(folder)


@pytest.mark.parametrize("change, message", [
  (lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act is 'relu'.*gelu"),
  (lambda c: c["vision_config"].update(image_size=[32, 64]), "image_size.*expected squares"),
  (lambda c: c["vision_config"].update(num_channels=4), "4 channels, expected 3"),
  (lambda c: c.pop("text_config"), "text_config is None, expected the settings"),
])
def test_a_config_of_another_kind_is_refused_in_words(folder, change, message):
  edit(folder, change)
  with pytest.raises(ConvertError, match=message):
    convert.read(folder)


@pytest.mark.parametrize("image, text, message", [
  (dict(pool_type="gap"), {}, "model.image.pool_type='gap'.*has map"),
  ({}, dict(pool_type="first"), "model.text.pool_type='first'.*has last"),
  (dict(posemb_type="sincos2d"), {}, "posemb_type='sincos2d'.*only 'learn'"),
  (dict(image_size=(32, 48)), {}, "square images.*32x48"),
  (dict(num_classes=7), dict(out_dim=7), "num_classes=7.*no classes"),
])
def test_a_model_that_the_library_cannot_hold_is_refused_in_words(tmp_path, image, text, message):
  model = dict(image=towers.IMAGE | image, text=towers.TEXT | text, bias_init=-10.0)
  with pytest.raises(ConvertError, match=message):
    convert.write("transformers", tmp_path / "E", towers.weights(model))
  assert not (tmp_path / "E").exists()


def test_a_model_of_another_task_is_told_where_to_go(tmp_path):
  with pytest.raises(ConvertError, match="task 'siglip'.*'ps3'.*npz or ps3_torch"):
    convert.write("transformers", tmp_path / "E", convert.Weights({}, "ps3", {}))


def test_a_head_and_a_bias_that_are_not_there_are_an_identity_and_a_zero(tmp_path):
  text = towers.TEXT | dict(width=48, num_heads=4, out_dim=0)
  model = dict(image=towers.IMAGE, text=text, bias_init=None)
  convert.write("transformers", tmp_path / "E", towers.weights(model), dtype="bfloat16")
  theirs = files.read_tensors(tmp_path / "E" / "model.safetensors")
  np.testing.assert_array_equal(theirs["text_model.head.weight"].astype(np.float32), np.eye(48))
  assert not theirs["text_model.head.bias"].any() and theirs["logit_bias"] == 0
  read = convert.read(tmp_path / "E")
  assert read.model["text"]["out_dim"] == 48 and read.params["b"] == 0
