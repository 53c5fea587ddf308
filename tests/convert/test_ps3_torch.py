"""Names and shapes are those of the released implementation, written out here by hand."""

import json

import numpy as np
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.convert import files, ps3_config, timm_vits
from big_vision_ext.convert.lazy import ConvertError, of
from tests.convert import cases


def expected(model):
  """{name: shape} of the released model at these sizes."""
  v, t = model["image"], model["text"]
  c, m, p, n = v["width"], v["mlp_dim"], v["patch_size"], len(v["scales"]) - 1
  d = v.get("pool_width", c)
  out = {}

  def lin(name, o, i):
    out[f"{name}.weight"], out[f"{name}.bias"] = (o, i), (o,)

  def ln(name, w):
    out[f"{name}.weight"] = out[f"{name}.bias"] = (w,)
  x = "vision_model."
  out[f"{x}prior_prompt"] = (c,)
  out[f"{x}trunk.pos_embed"] = (1, v["posemb_grid"][0] ** 2, c)
  out[f"{x}trunk.patch_embed.proj.weight"] = (c, 3, p, p)
  out[f"{x}trunk.patch_embed.proj.bias"] = (c,)
  for i in range(v["depth"]):
    b = f"{x}trunk.blocks.{i}."
    ln(f"{b}norm1", c), ln(f"{b}norm2", c)
    lin(f"{b}attn.qkv", 3 * c, c), lin(f"{b}attn.proj", c, c)
    lin(f"{b}mlp.fc1", m, c), lin(f"{b}mlp.fc2", c, m)
  if "adapter_hidden" in v:
    h, a = v["adapter_hidden"], f"{x}trunk.siglip_proj."
    lin(f"{a}fc1", h, c)
    for i in range(3):
      ln(f"{a}blocks.{i}.0", h), lin(f"{a}blocks.{i}.2", h, h)
    ln(f"{a}final.0", h), lin(f"{a}final.2", d, h)
    m = v["pool_mlp_dim"]
  else:
    ln(f"{x}trunk.norm", c)
  a = f"{x}trunk.attn_pool."
  out[f"{a}latent"] = (1, 1, d)
  lin(f"{a}q", d, d), lin(f"{a}kv", 2 * d, d), lin(f"{a}proj", d, d), ln(f"{a}norm", d)
  lin(f"{a}mlp.fc1", m, d), lin(f"{a}mlp.fc2", d, m)
  s = c * len(v["select_layers"])
  f = f"{x}selection_feature_proj."
  lin(f"{f}fc1", s, s), ln(f"{f}norm", s), lin(f"{f}fc2", n * c, s)
  for i, size in enumerate(v["scales"][1:]):
    out[f"{x}pos_emb_residual.{i}"] = (1, (size // p) ** 2, c)
  if v.get("highres_branch", True):
    k, h, e = v.get("selection_kernel", 28), v["selection_hidden"], v["selection_out"]
    f = f"{x}highres_selection_feature_module."
    out[f"{f}stem.0.weight"], out[f"{f}stem.0.bias"] = (h, 3, k, k), (h,)
    ln(f"{f}stem.1", h)
    for i in range(v["selection_depth"]):
      b = f"{f}blocks.{i}."
      out[f"{b}weight"], out[f"{b}conv_dw.weight"], out[f"{b}conv_dw.bias"] = (
          (h,), (h, 1, 7, 7), (h,))
      ln(f"{b}norm", h), lin(f"{b}mlp.fc1", 4 * h, h), lin(f"{b}mlp.fc2", h, 4 * h)
    out[f"{f}out_proj.weight"], out[f"{f}out_proj.bias"] = (e, h, 1, 1), (e,)
    lin(f"{x}prompt_proj_for_highres", n * e, c)
  w, m, x = t["width"], t["mlp_dim"], "text_model."
  out[f"{x}positional_embedding"] = (t["text_len"], w)
  out[f"{x}token_embedding.weight"] = (t["vocab_size"], w)
  for i in range(t["depth"]):
    b = f"{x}transformer.resblocks.{i}."
    ln(f"{b}ln_1", w), ln(f"{b}ln_2", w)
    out[f"{b}attn.in_proj_weight"], out[f"{b}attn.in_proj_bias"] = (3 * w, w), (3 * w,)
    lin(f"{b}attn.out_proj", w, w), lin(f"{b}mlp.c_fc", m, w), lin(f"{b}mlp.c_proj", w, m)
  ln(f"{x}ln_final", w), lin(f"{x}text_projection", d, w)
  lin(f"{x}prompt_proj.fc1", c, d), ln(f"{x}prompt_proj.norm", c), lin(f"{x}prompt_proj.fc2", c, c)
  return out | {"logit_scale": (), "logit_bias": ()}


@pytest.mark.parametrize("name", cases.PS3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_has_the_released_names_and_shapes_and_comes_back_bitwise(tmp_path, name, dtype):
  weights = cases.weights("ps3", cases.PS3[name], dtype=dtype)
  convert.write("ps3_torch", tmp_path / "e", weights, shard_bytes=3e6)
  theirs = files.read_tensors(files.find(tmp_path / "e", "model"))
  assert {n: s for n, (s, _) in theirs.specs().items()} == expected(weights.model)
  back = convert.read(tmp_path / "e")
  cases.assert_same(back.params, weights.params)
  convert.write("ps3_torch", tmp_path / "again", back, shard_bytes=1e9)
  cases.assert_same(files.read_tensors(tmp_path / "again" / "model.safetensors"), theirs)
  a, b = (files.read_json(tmp_path / e / "config.json") for e in ("e", "again"))
  assert a == b and a["torch_dtype"] == dtype


def test_values_land_where_the_released_model_looks_for_them(tmp_path):
  weights = cases.weights("ps3", cases.PS3["custom"])
  convert.write("ps3_torch", tmp_path / "e", weights)
  theirs, p = files.read_tensors(tmp_path / "e" / "model.safetensors"), weights.params
  mha = "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
  # Rows q, k, v; within each, head by head. Head 2 of the keys:
  np.testing.assert_array_equal(
      theirs["vision_model.trunk.blocks.1.attn.qkv.weight"][48 + 32:48 + 48],
      p[f"{mha}/key/kernel"][:, 2].T)
  np.testing.assert_array_equal(
      theirs["vision_model.trunk.attn_pool.kv.bias"][48:],
      p["img/MAPHead_0/MultiHeadDotProductAttention_0/value/bias"].ravel())
  np.testing.assert_array_equal(theirs["vision_model.trunk.patch_embed.proj.weight"][5, 1, 2, 3],
                                p["img/embedding/kernel"][2, 3, 1, 5])
  np.testing.assert_array_equal(theirs["vision_model.prompt_proj_for_highres.weight"][20],
                                p["img/prompt_proj_for_highres/kernel"][:, 20])
  np.testing.assert_array_equal(
      theirs["vision_model.highres_selection_feature_module.blocks.0.weight"],
      p["img/highres_selection/block_0/scale"])
  assert theirs["logit_scale"] == p["t"][0]


@pytest.mark.parametrize("name", cases.PS3)
def test_the_config_describes_a_model_that_our_task_builds(tmp_path, name):
  model = cases.PS3[name]
  convert.write("ps3_torch", tmp_path / "e", cases.weights("ps3", model))
  (tmp_path / "e" / convert.EXPORT_FILE).unlink()
  found = convert.read(tmp_path / "e")
  assert found.task == "ps3"
  for part in ("image", "text"):
    for key, value in model[part].items():
      assert found.model[part][key] == value, key
  task, want = tasks.make("ps3", found.model), tasks.make("ps3", model)
  assert task.vision.budget() == want.vision.budget()
  assert found.input["image_size"] == model["image"]["scales"][-1]
  assert found.input["mean"] == model["image"].get("mean", [0.5] * 3)
  own = tmp_path / "e" / "ps3_custom.py"
  assert own.exists() == (name == "custom")
  if name == "custom":
    compile(own.read_text(), "ps3_custom.py", "exec")


def test_a_published_config_is_understood(tmp_path):
  """PS3-4K-SigLIP's, as its card and the released configs give it."""
  config = {
      "architectures": ["PS3Model"], "model_type": "ps3",
      "vision_config": {
          "model_name": "vit_so400m_patch14_siglip_384", "hidden_size": 1152, "pool": "map",
          "ps3": True, "ps3_scales": [378, 756, 1512, 3780], "min_select_num": 1,
          "select_based_on_layer": [0, 9, 18, 26], "max_select_num": 2560,
          "separate_pos_emb": True, "highres_selection_feature": True, "radio": False},
      "text_config": {
          "output_dim": 1152, "prompt_proj_dim": 1152, "context_length": 64, "vocab_size": 32000,
          "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "width": 1152, "heads": 16, "layers": 27,
          "mlp_ratio": 3.7362, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
          "norm_kwargs": {"eps": 1e-6}}}
  model = ps3_config.read(config, "config.json")
  task = tasks.make("ps3", model)
  assert task.vision.posemb_grid == (27, 27) and task.vision.budget() == (85, 341, 2134)
  assert (task.vision.width, task.vision.depth, task.vision.mlp_dim) == (1152, 27, 4304)
  assert (task.text.mlp_dim, task.text.act, task.text.vocab_size) == (4304, "gelu", 32000)
  again = ps3_config.write(model, timm_name="vit_so400m_patch14_siglip_384")
  for part in ("vision_config", "text_config"):
    known = {k: v for k, v in config[part].items() if k in again[part]}
    known |= {"hf_tokenizer_name": None} if part == "text_config" else {}
    assert {k: again[part][k] for k in known} == known
  # Releases up to 0.1.3 would lose a token to rounding, were the split not written out.
  assert again["vision_config"]["max_select_num_each_scale"] == [85, 341, 2134]


def test_names_of_training_checkpoints_and_files_of_pytorch_are_read(tmp_path):
  weights = cases.weights("ps3", cases.PS3["named"])
  convert.write("ps3_torch", tmp_path / "e", weights)
  path = tmp_path / "e" / "model.safetensors"
  theirs = files.read_tensors(path)

  def trained(name):
    for new, old in (("text_model.prompt_proj.", "prompt_proj."), ("text_model.", "text."),
                     ("vision_model.", "visual.")):
      if name.startswith(new):
        return old + name.removeprefix(new)
    return name
  files.write_safetensors(tmp_path / "e" / "other.safetensors",
                          {trained(n): theirs.lazy(n) for n in theirs})
  cases.assert_same(convert.read(tmp_path / "e" / "other.safetensors").params, weights.params)


def test_temperature_and_bias_may_be_absent(tmp_path):
  weights = cases.weights("ps3", cases.PS3["named"])
  params = {n: x for n, x in weights.params.items() if n not in ("t", "b")}
  convert.write("ps3_torch", tmp_path / "e", convert.Weights(params, "ps3", weights.model))
  assert "logit_scale" not in files.read_tensors(tmp_path / "e" / "model.safetensors")
  cases.assert_same(convert.read(tmp_path / "e").params, params)


def rewrite(folder, change):
  path = folder / "model.safetensors"
  tensors = {n: np.array(x) for n, x in files.read_tensors(path).items()}
  change(tensors)
  files.write_safetensors(path, {n: of(x) for n, x in tensors.items()})


def test_an_incomplete_or_altered_file_gets_a_list_by_name(tmp_path):
  convert.write("ps3_torch", tmp_path / "e", cases.weights("ps3", cases.PS3["named"]))

  def change(tensors):
    del tensors["vision_model.trunk.blocks.3.attn.qkv.bias"]
    tensors["vision_model.trunk.cls_token"] = np.zeros((1, 1, 64), np.float32)
    tensors["text_model.ln_final.weight"] = np.zeros(31, np.float32)
  rewrite(tmp_path / "e", change)
  with pytest.raises(ConvertError) as error:
    convert.read(tmp_path / "e")
  for part in ("model.safetensors", "vision_model.trunk.blocks.3.attn.qkv.bias [192]",
               "extra in it (1):\n    vision_model.trunk.cls_token float32[1, 1, 64]",
               "text_model.ln_final.weight: it has float32[31], expected [32]"):
    assert part in str(error.value)


@pytest.mark.parametrize("part,change,message", [
    ("vision_config", {"model_name": "resnet50"}, "model_name='resnet50'"),
    ("vision_config", {"separate_pos_emb": False}, "separate_pos_emb"),
    ("text_config", {"no_causal_mask": False, "pool_type": "argmax"}, "(?s)causal.*pool_type"),
])
def test_models_that_ours_cannot_be_are_refused(tmp_path, part, change, message):
  convert.write("ps3_torch", tmp_path / "e", cases.weights("ps3", cases.PS3["named"]))
  path = tmp_path / "e" / "config.json"
  config = files.read_json(path)
  config[part] |= change
  path.write_text(json.dumps(config))
  with pytest.raises(ConvertError, match=message):
    convert.read(tmp_path / "e")


@pytest.mark.parametrize("image,text,message", [
    ({"pool_type": "gap"}, {}, "image.pool_type"),
    ({"posemb_grid": [4, 5]}, {}, "square position tables"),
    ({"final_norm": False}, {"pool_type": "first"}, "(?s)final_norm=False.*text.pool_type"),
    ({"low_antialias": True, "selection_antialias": True}, {},
     "(?s)model.image.low_antialias=True: it has False only.*image.selection_antialias=True"),
    ({"selection_maps": "each", "budget_rule": "cells", "look_policy": True}, {},
     "(?s)image.selection_maps='each'.*image.budget_rule='cells'.*image.look_policy=True"),
])
def test_settings_without_a_counterpart_are_refused_together(tmp_path, image, text, message):
  model = cases.PS3["named"]
  model = {"image": {**model["image"], **image}, "text": {**model["text"], **text}}
  with pytest.raises(ConvertError, match=message):
    convert.write("ps3_torch", tmp_path / "e", cases.weights("ps3", model))
  assert not (tmp_path / "e").exists()
  with pytest.raises(ConvertError, match="holds models of task 'ps3', not 'siglip'"):
    convert.write("ps3_torch", tmp_path / "e", cases.weights("siglip", cases.SIGLIP))


def test_every_trunk_has_a_name_that_says_its_sizes():
  for name, sizes in timm_vits.VITS.items():
    assert timm_vits.sizes_of(name) == sizes
    assert timm_vits.VITS[timm_vits.find(sizes)][:5] == sizes[:5]
  odd = timm_vits.Sizes(48, 2, 3, 100, 8, 40, "gelu_tanh")
  assert timm_vits.find(odd) is None and timm_vits.sizes_of(timm_vits.own_name(odd)) == odd
  assert timm_vits.sizes_of("timm/vit_so400m_patch14_siglip_384.webli").width == 1152
  code = timm_vits.registration(odd)
  ratio = float(code.split("mlp_ratio=")[1].split(",")[0])
  assert int(48 * ratio) == 100


@pytest.mark.parametrize("width,mlp_dim,ratio", [
    (1152, 4304, 3.7362), (768, 3072, 4.0), (32, 119, 3.72), (1024, 4096, 4.0), (97, 331, None)])
def test_the_text_models_ratio_gives_the_width_back(width, mlp_dim, ratio):
  found = ps3_config._ratio(width, mlp_dim)
  assert int(width * found) == mlp_dim and ratio in (None, found)
