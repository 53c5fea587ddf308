"""timm's vision transformers: bit by bit both ways, activations by name, and refusals in words.

That the library itself agrees is tested in tests/oracles/test_siglip_parity.py.
"""

import json

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import ConvertError, Tensors, files, timm
from tests.convert import siglip_towers as towers

OBLONG = towers.IMAGE | dict(patch_size=(8, 16), image_size=(32, 48))


def image_only(image=towers.IMAGE, **kw):
  return towers.weights(dict(image=image, text=None), **kw)


@pytest.mark.parametrize("image", [
  towers.IMAGE, OBLONG | dict(act="gelu"), towers.IMAGE | dict(pool_type="gap"),
  towers.IMAGE | dict(num_classes=5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_keeps_every_bit_and_the_model(tmp_path, image, dtype):
  first = image_only(image, seed=2)
  convert.write("timm", tmp_path / "E", first, dtype=dtype)
  # As the library would find it, without our own note.
  (tmp_path / "E" / "export.json").unlink()
  read = convert.read(tmp_path / "E")
  towers.assert_same_bits(
    read.params, {n: x.astype(convert.DTYPES[dtype]) for n, x in first.params.items()})
  assert {k: read.model["image"][k] for k in image} == image
  assert read.model["text"] is None


def test_of_a_pair_of_towers_the_vision_tower_is_written(tmp_path):
  pair = towers.weights()
  convert.write("timm", tmp_path / "E", pair)
  read = convert.read(tmp_path / "E")
  towers.assert_same_bits(
    read.params, {n: x for n, x in pair.params.items() if n.startswith("img/")})
  assert read.model["text"] is None


def test_arrays_are_turned_as_the_library_has_them(tmp_path):
  ours = towers.draw(dict(image=towers.IMAGE, text=None))
  convert.write("timm", tmp_path / "E", image_only())
  theirs = files.read_tensors(tmp_path / "E" / "model.safetensors")
  attention = "MultiHeadDotProductAttention_0"
  key = ours[f"img/Transformer/encoderblock_1/{attention}/key/kernel"]
  assert theirs["blocks.1.attn.qkv.weight"][48 + 37, 5] == key[5, 37 // 16, 37 % 16]
  value = ours[f"img/MAPHead_0/{attention}/value/bias"]
  assert theirs["attn_pool.kv.bias"][48 + 20] == value[20 // 16, 20 % 16]
  assert theirs["patch_embed.proj.weight"][9, 2, 3, 6] == ours["img/embedding/kernel"][3, 6, 2, 9]
  assert theirs["pos_embed"].shape == (1, 16, 48)


@pytest.mark.parametrize("name, variant, pixels, patch, act", [
  ("vit_base_patch16_siglip_256", (768, 12, 3072, 12), 256, 16, "gelu"),
  ("vit_so400m_patch14_siglip_384", (1152, 27, 4304, 16), 384, 14, "gelu"),
  ("vit_so400m_patch16_siglip_512", (1152, 27, 4304, 16), 512, 16, "gelu_tanh"),
  ("vit_giantopt_patch16_siglip_384", (1536, 40, 6144, 16), 384, 16, "gelu_tanh"),
  (None, (768, 12, 3072, 12), 256, 16, "gelu_tanh"),
  (None, (768, 12, 3072, 12), 320, 16, "gelu"),
  (None, (768, 11, 3072, 12), 256, 16, "gelu"),
])
def test_a_model_has_a_name_there_only_if_it_computes_the_same(name, variant, pixels, patch, act):
  sizes = dict(zip(("width", "depth", "mlp_dim", "num_heads"), variant))
  image = sizes | dict(image_size=pixels, patch_size=patch, act=act)
  assert timm.architecture(image) == name
  config = timm.config(convert.Weights({}, "siglip", dict(image=image)))
  if name:
    assert config["architecture"] == name and "model_args" not in config
  else:
    assert config["model_args"]["act_layer"] == act
    assert config["model_args"]["img_size"] == [pixels, pixels]


@pytest.mark.parametrize("width, mlp_dim", [(1152, 4304), (48, 80), (1000, 2999), (7, 5), (49, 3)])
def test_the_ratio_gives_the_width_of_the_mlp(width, mlp_dim):
  assert int(width * timm.ratio(mlp_dim, width)) == mlp_dim


def save(folder, config, change=lambda x: None):
  """A folder as the library saves it, of the tiny tower."""
  convert.write("timm", folder, image_only())
  (folder / "export.json").unlink()
  arrays = {n: np.array(x) for n, x in files.read_tensors(folder / "model.safetensors").items()}
  change(arrays)
  found = Tensors(arrays)
  files.write_safetensors(folder / "model.safetensors", {n: found.lazy(n) for n in found})
  (folder / "config.json").write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize("name, args, act", [
  ("vit_base_patch16_siglip_224", {}, "gelu"),
  ("vit_base_patch32_siglip_256", {}, "gelu_tanh"),
  ("vit_large_patch16_siglip_gap_512", {}, "gelu_tanh"),
  ("vit_so400m_patch16_siglip_256", {}, "gelu_tanh"),
  ("vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}, "gelu_tanh"),
  ("vit_base_patch32_siglip_256", {"act_layer": "gelu"}, "gelu"),
])
def test_the_activation_is_that_of_the_named_architecture(tmp_path, name, args, act):
  config = {"architecture": name, "model_args": {"num_heads": 3, **args}}
  assert convert.read(save(tmp_path / "E", config)).model["image"]["act"] == act


@pytest.mark.parametrize("config, change, message", [
  ({"architecture": "vit_mine"}, lambda x: None, "how many heads a tower 48 wide.*num_heads"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3, "act_layer": "silu"}},
   lambda x: None, "activation is 'silu'"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3}},
   lambda x: x.update(cls_token=np.zeros((1, 1, 48), np.float32)), "class token"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3}},
   lambda x: x.update({"blocks.0.ls1.gamma": np.zeros(48, np.float32)}), "layer scale"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3}},
   lambda x: x.update(pos_embed=np.zeros((1, 15, 48), np.float32)), "15 positions.*no square"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3}},
   lambda x: x.pop("patch_embed.proj.weight"), "no array 'patch_embed.proj.weight'"),
  ({"architecture": "vit_mine", "model_args": {"num_heads": 3}},
   lambda x: [x.pop("blocks.1.mlp.fc1.bias"), x.update(more=np.zeros(1, np.float32))],
   r"missing in it \(1\):\n.*blocks.1.mlp.fc1.bias \[80\]\n.*extra in it \(1\):\n.*more"),
])
def test_what_is_no_plain_vision_transformer_is_refused_in_words(tmp_path, config, change, message):
  folder = save(tmp_path / "E", config, change)
  with pytest.raises(ConvertError, match=f"(?s){message}"):
    convert.read(folder)


def test_an_epsilon_of_ones_own_is_refused(tmp_path):
  with pytest.raises(ConvertError, match="ln_eps=1e-05: timm's towers have 1e-06"):
    convert.write("timm", tmp_path / "E", image_only(towers.IMAGE | dict(ln_eps=1e-5)))
