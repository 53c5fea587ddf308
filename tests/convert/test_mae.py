"""Masked autoencoders of facebookresearch and transformers, in and out bit by bit.

That the libraries themselves agree is tested in tests/oracles/test_mae_parity.py.
"""

import json

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import ConvertError, Tensors, files
from tests.convert import cases

# Every size differs, but for the heads, which facebook's files do not tell.
FACEBOOK = cases.MAE | {"image": cases.MAE["image"] | dict(width=192, num_heads=3)}


def spec(form):
  return FACEBOOK if form == "mae" else cases.MAE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["mae", "transformers", "npz"])
def test_a_round_trip_keeps_every_bit(tmp_path, form, dtype):
  first = cases.weights("mae", spec(form), seed=1)
  convert.write(form, tmp_path / "a", first, dtype=dtype)
  once = convert.read(tmp_path / "a")
  assert once.task == "mae" and once.model["mask"] == {"num_visible": 6}
  want = {n: x.astype(convert.DTYPES[dtype]) for n, x in first.params.items()}
  cases.assert_same(once.params, want)
  convert.write(form, tmp_path / "b", once)
  cases.assert_same(convert.read(tmp_path / "b").params, want)


def test_formats_convert_into_each_other(tmp_path):
  first = cases.weights("mae", FACEBOOK, seed=2)
  convert.write("mae", tmp_path / "a", first)
  convert.write("transformers", tmp_path / "b", convert.read(tmp_path / "a"))
  cases.assert_same(convert.read(tmp_path / "b").params, first.params)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_what_is_predicted_goes_with_the_weights(tmp_path, norm_pix):
  convert.write("transformers", tmp_path / "E", cases.weights("mae", cases.MAE | {
      "norm_pix": norm_pix}))
  config = json.loads((tmp_path / "E" / "config.json").read_text())
  assert config["norm_pix_loss"] is norm_pix
  # As many as the library would leave visible.
  assert int(25 * (1 - config["mask_ratio"])) == 6
  (tmp_path / "E" / "export.json").unlink(missing_ok=True)
  assert convert.read(tmp_path / "E").model["norm_pix"] is norm_pix


def test_arrays_are_turned_as_facebook_has_them(tmp_path):
  convert.write("mae", tmp_path / "E", first := cases.weights("mae", FACEBOOK, seed=3))
  ours, theirs = first.params, files.read_tensors(tmp_path / "E" / "model.safetensors")
  block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
  qkv = theirs["blocks.1.attn.qkv.weight"]
  assert qkv.shape == (3 * 192, 192)
  for i, part in enumerate(("query", "key", "value")):
    assert qkv[i * 192 + 100, 7] == ours[f"{block}/{part}/kernel"][7, 100 // 64, 100 % 64]
  patch = theirs["patch_embed.proj.weight"]
  assert patch[5, 2, 3, 4] == ours["embedding/kernel"][3, 4, 2, 5]
  # The class token's position is the first row of the table.
  table = theirs["pos_embed"]
  np.testing.assert_array_equal(table[0, 0], ours["cls_pos_embedding"][0, 0])
  np.testing.assert_array_equal(table[0, 1:], ours["pos_embedding"][0])
  np.testing.assert_array_equal(theirs["decoder_pred.weight"], ours["decoder_pred/kernel"].T)
  assert len(theirs) == 12 * (3 + 2) + 14


def rewrite(folder, change):
  file = folder / "model.safetensors"
  arrays = {name: np.array(x) for name, x in files.read_tensors(file).items()}
  change(arrays)
  found = Tensors(arrays)
  files.write_safetensors(file, {name: found.lazy(name) for name in found})


@pytest.mark.parametrize("form", ["mae", "transformers"])
@pytest.mark.parametrize("change, message", [
    (lambda a: a.pop(next(n for n in a if "decoder_norm.weight" in n)), "decoder_norm.weight"),
    (lambda a: a.update({"extra.thing": np.zeros(3, np.float32)}), "extra.thing"),
    (lambda a: a.update({next(n for n in a if "decoder_pred.bias" in n): np.zeros(3, np.float32)}),
     "decoder_pred")])
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, form, change, message):
  convert.write(form, tmp_path / "E", cases.weights("mae", spec(form)))
  rewrite(tmp_path / "E", change)
  with pytest.raises(ConvertError, match=message):
    read = convert.read(tmp_path / "E")
    for name in read.params:
      np.asarray(read.params[name])


@pytest.mark.parametrize("saved_by_5", [False, True])
def test_names_of_older_transformers_are_read(tmp_path, saved_by_5):
  convert.write("transformers", tmp_path / "E", first := cases.weights("mae", cases.MAE, seed=4))
  renamed = (("vit.layers.", "vit.encoder.layer."),
             ("attention.q_proj", "attention.attention.query"),
             ("attention.k_proj", "attention.attention.key"),
             ("attention.v_proj", "attention.attention.value"),
             ("attention.o_proj", "attention.output.dense"),
             ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"))

  def rename(arrays):
    for name in list(arrays):
      new = name
      for a, b in renamed:
        new = new.replace(a, b)
      if saved_by_5:
        new = new.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
      arrays[new] = arrays.pop(name)

  rewrite(tmp_path / "E", rename)
  cases.assert_same(convert.read(tmp_path / "E").params, first.params)


@pytest.mark.parametrize("change, message", [
    (dict(decoder="cross"), "model.image.decoder='cross'"),
    (dict(num_cls=8), "mlp_dim=80: PixioModel's is a multiple")])
def test_what_a_format_cannot_hold_is_refused(tmp_path, change, message):
  model = cases.MAE | {"image": cases.MAE["image"] | change}
  with pytest.raises(ConvertError, match=message):
    convert.write("transformers", tmp_path / "E", cases.weights("mae", model))
  convert.write("npz", tmp_path / "N", first := cases.weights("mae", model))
  cases.assert_same(convert.read(tmp_path / "N").params, first.params)
