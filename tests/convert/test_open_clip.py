"""open_clip's SigLIP: bit by bit both ways, activations of both towers, and refusals in words.

That the library itself agrees is tested in tests/oracles/test_siglip_parity.py.
"""

import json

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import ConvertError, files, open_clip
from tests.convert import siglip_towers as towers


def config_of(folder):
  return json.loads((folder / "open_clip_config.json").read_text())


def edit(folder, change):
  """Applies `change` to the config; our own note goes, as if the folder were the library's."""
  config = config_of(folder)
  change(config["model_cfg"])
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  (folder / "export.json").unlink(missing_ok=True)


@pytest.mark.parametrize("bias", [-10.0, None])
@pytest.mark.parametrize("image, text", [
  ({}, {}), (dict(act="gelu"), {}), ({}, dict(act="gelu", pool_type="first", ln_eps=1e-5)),
  ({}, dict(width=48, num_heads=4, out_dim=0))])
def test_a_round_trip_keeps_every_bit_and_the_model(tmp_path, image, text, bias):
  model = dict(image=towers.IMAGE | image, text=towers.TEXT | text, bias_init=bias)
  first = towers.weights(model, seed=3)
  convert.write("open_clip", tmp_path / "E", first)
  edit(tmp_path / "E", lambda c: None)
  read = convert.read(tmp_path / "E")
  towers.assert_same_bits(read.params, first.params)
  for tower in ("image", "text"):
    assert {k: read.model[tower][k] for k in model[tower]} == model[tower]
  assert read.model["bias_init"] == bias


def test_arrays_are_turned_as_the_library_has_them(tmp_path):
  ours = towers.draw(towers.MODEL)
  convert.write("open_clip", tmp_path / "E", towers.weights())
  theirs = files.read_tensors(tmp_path / "E" / "open_clip_model.safetensors")
  query = ours["txt/Encoder_0/encoderblock_2/MultiHeadDotProductAttention_0/query/kernel"]
  packed = theirs["text.transformer.resblocks.2.attn.in_proj_weight"]
  assert packed[21, 5] == query[5, 21 // 16, 21 % 16]
  assert theirs["text.text_projection.weight"][40, 30] == ours["txt/head/kernel"][30, 40]
  assert theirs["text.positional_embedding"].shape == (10, 32)
  assert theirs["logit_scale"].shape == () and theirs["logit_scale"] == ours["t"][0]
  assert "visual.trunk.attn_pool.latent" in theirs


def test_a_published_size_is_named_as_in_timm_and_another_by_its_folder(tmp_path, monkeypatch):
  tiny = tmp_path / "tiny"
  convert.write("open_clip", tiny, towers.weights())
  assert config_of(tiny)["model_cfg"]["vision_cfg"]["timm_model_name"] == f"local-dir:{tiny}"
  described = json.loads((tiny / "config.json").read_text())
  assert described["model_args"]["embed_dim"] == 48
  assert described["model_args"]["act_layer"] == "gelu_tanh"
  # A moved folder is still read: what it describes lies in it.
  tiny.rename(tmp_path / "moved")
  towers.assert_same_bits(convert.read(tmp_path / "moved").params, towers.draw(towers.MODEL))

  known = towers.IMAGE | dict(act="gelu")
  monkeypatch.setattr(open_clip.timm, "architecture", lambda image: "vit_base_patch16_siglip_224")
  convert.write("open_clip", tmp_path / "known", towers.weights(towers.MODEL | dict(image=known)))
  vision = config_of(tmp_path / "known")["model_cfg"]["vision_cfg"]
  assert vision["timm_model_name"] == "vit_base_patch16_siglip_224"
  assert not (tmp_path / "known" / "config.json").exists()


def test_a_text_tower_without_a_word_on_its_gelu_has_the_exact_one(tmp_path):
  convert.write("open_clip", tmp_path / "E", towers.weights())
  assert config_of(tmp_path / "E")["model_cfg"]["text_cfg"]["act_kwargs"] == {"approximate": "tanh"}
  edit(tmp_path / "E", lambda c: c["text_cfg"].pop("act_kwargs"))
  assert convert.read(tmp_path / "E").model["text"]["act"] == "gelu"


def test_a_temperature_with_an_axis_is_read_too(tmp_path):
  convert.write("open_clip", tmp_path / "E", towers.weights())
  file = tmp_path / "E" / "open_clip_model.safetensors"
  theirs = files.read_tensors(file)
  lazy = {n: theirs.lazy(n) for n in theirs}
  lazy["logit_scale"] = lazy["logit_scale"].reshape(1)
  arrays = {n: np.array(x.read()) for n, x in lazy.items()}
  found = convert.Tensors(arrays)
  files.write_safetensors(file, {n: found.lazy(n) for n in found})
  towers.assert_same_bits(convert.read(tmp_path / "E").params, towers.draw(towers.MODEL))


@pytest.mark.parametrize("change, message", [
  (lambda c: c["text_cfg"].update(no_causal_mask=False), "no_causal_mask is False, expected True"),
  (lambda c: c["text_cfg"].update(pool_type="argmax"), "pool_type is 'argmax'"),
  (lambda c: c["text_cfg"].update(hf_model_name="roberta"), "hf_model_name is 'roberta'"),
  (lambda c: c.update(quick_gelu=True), "an activation that is not known here"),
  (lambda c: c["vision_cfg"].pop("timm_model_name"), "vision_cfg has no timm_model_name"),
  (lambda c: c.pop("vision_cfg"), "vision_cfg is None"),
  (lambda c: c["text_cfg"].update(vocab_size=38),
   r"token_embedding.weight.*\[37, 32\].*\[38, 32\]"),
])
def test_a_model_of_another_kind_is_refused_in_words(tmp_path, change, message):
  convert.write("open_clip", tmp_path / "E", towers.weights())
  edit(tmp_path / "E", change)
  with pytest.raises(ConvertError, match=message):
    convert.read(tmp_path / "E")


def test_a_vision_tower_alone_is_refused(tmp_path):
  with pytest.raises(ConvertError, match="needs both towers.*no text tower"):
    convert.write("open_clip", tmp_path / "E", towers.weights(dict(image=towers.IMAGE, text=None)))
