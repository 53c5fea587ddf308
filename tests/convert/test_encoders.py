"""Encoders and classifiers for timm, transformers and facebook's I-JEPA: bit by bit, and in words.

That the libraries themselves agree is tested in tests/oracles/test_encoders_parity.py.
"""

import json
import re

import jax
import numpy as np
import pytest

from big_vision_ext import convert, tasks, weights
from big_vision_ext.convert import ConvertError, Tensors, encoders, files, ours, timm_encoders
from big_vision_ext.core import sharding, trees
from big_vision_ext.models import vit
from tests.convert import cases

# Every size differs.
SIZES = dict(width=48, depth=3, mlp_dim=80, num_heads=3, patch_size=8, image_size=40)
OBLONG = SIZES | dict(patch_size=(8, 4), image_size=(32, 24))
BARE = SIZES | dict(pool_type="none")
CLASSES = ["ash", "beech", "cedar", "date", "elm"]
# Task, its settings, and what formats keep of it.
MODELS = {
  "masked autoencoder": ("mae", cases.MAE, ours.ENCODER),
  "I-JEPA": ("ijepa", cases.IJEPA, ours.ENCODER),
  "mean": ("classify", {"image": SIZES, "num_classes": 5, "feature": "mean"}, "classify"),
  "mean, oblong": ("classify", {"image": OBLONG, "num_classes": 5}, "classify"),
  "mean, no class token": ("classify", {"image": BARE, "num_classes": 5}, "classify"),
  "class token": ("classify", {"image": OBLONG, "num_classes": 5, "feature": "cls"}, "classify"),
  "encoder": (ours.ENCODER, {"image": OBLONG | dict(pool_type="tok")}, ours.ENCODER),
  "encoder, no class token": (ours.ENCODER, {"image": BARE}, ours.ENCODER),
  "Pixio": ("mae", cases.MAE | {"image": cases.MAE["image"] | dict(num_cls=8, mlp_dim=96)},
            ours.ENCODER),
}
CASES = [("timm", name) for name in MODELS if name != "Pixio"] + [
  ("transformers", name) for name in MODELS if not name.startswith(("mean", "masked"))]


def drawn(name, seed=0, dtype="float32"):
  task, model, _ = MODELS[name]
  found = cases.weights(task, model, seed=seed, dtype=dtype)
  known = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "classes": CLASSES}
  return convert.Weights(Tensors(found.params), task, model, known)


def kept(name, seed=0, dtype="float32"):
  """The arrays that are kept, picked here by hand."""
  params = drawn(name, seed, dtype).params
  teacher = "teacher/" if MODELS[name][0] == "ijepa" else ""
  lost = re.compile(r"(?i)decoder.*|mask_token")
  return {n.removeprefix(teacher): params[n] for n in params
          if n.startswith(teacher) and not lost.fullmatch(n)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form, name", CASES)
def test_a_round_trip_keeps_every_bit_and_says_what_it_is(tmp_path, form, name, dtype):
  convert.write(form, tmp_path / "a", drawn(name, 1, dtype))
  # As the library would find it, without our own note.
  note = json.loads((tmp_path / "a" / "export.json").read_text())
  (tmp_path / "a" / "export.json").unlink()
  assert convert.detect(tmp_path / "a") == form
  once = convert.read(tmp_path / "a")
  task, model, becomes = MODELS[name]
  assert once.task == note["task"] == becomes
  cases.assert_same(once.params, kept(name, 1, dtype))
  image = {k: tuple(v) if isinstance(v, list) else v for k, v in model["image"].items()
           if "decoder" not in k}
  assert {k: once.model["image"][k] for k in image} == image
  assert once.model["image"]["act"] == "gelu", "what these models have if nothing is said"
  np.testing.assert_allclose(once.input["mean"], [0.1, 0.2, 0.3])
  if becomes == "classify":
    assert once.model["feature"] == model.get("feature", "mean")
    assert once.input["classes"] == CLASSES
  convert.write(form, tmp_path / "b", once)
  cases.assert_same(convert.read(tmp_path / "b").params, kept(name, 1, dtype))
  card = (tmp_path / "a" / "README.md").read_text()
  assert ("without a head" if becomes == ours.ENCODER else "image classifier") in card


def test_what_one_library_keeps_goes_to_the_other_and_to_npz(tmp_path):
  convert.write("timm", tmp_path / "a", drawn("class token"))
  convert.write("transformers", tmp_path / "b", convert.read(tmp_path / "a"))
  convert.write("npz", tmp_path / "c", convert.read(tmp_path / "b"))
  found = convert.read(tmp_path / "c")
  cases.assert_same(found.params, kept("class token"))
  assert found.task == "classify" and found.model["feature"] == "cls"


@pytest.mark.parametrize("name, pixels, token, there", [
  ("B/16", 224, True, "vit_base_patch16_224"), ("L/16", 224, True, "vit_large_patch16_224"),
  ("H/14", 224, True, "vit_huge_patch14_224"), ("H/14", 224, False, "vit_huge_patch14_gap_224"),
  ("H/16", 448, False, "vit_huge_patch16_gap_448"), ("B/16", 240, True, None),
  ("L/16", 224, False, None)])
def test_a_published_size_has_its_name_in_timm(name, pixels, token, there):
  image = vit.variant(name) | dict(image_size=pixels, pool_type="tok" if token else "none")
  image["act"] = "gelu"
  assert timm_encoders.architecture(image) == there
  model = convert.Weights(Tensors({}), ours.ENCODER, {"image": image})
  config = timm_encoders.config(model)
  assert ("model_args" in config) == (there is None)
  assert config["num_classes"] == 0 and config["global_pool"] == ("token" if token else "avg")


def test_arrays_lie_where_the_libraries_look_for_them(tmp_path):
  mine = drawn("mean", 3).params
  convert.write("timm", tmp_path / "a", drawn("mean", 3))
  theirs = files.read_tensors(tmp_path / "a/model.safetensors")
  np.testing.assert_array_equal(theirs["pos_embed"][0, 0], mine["cls_pos_embedding"][0, 0])
  np.testing.assert_array_equal(theirs["head.weight"], mine["head/kernel"].T)
  np.testing.assert_array_equal(theirs["fc_norm.weight"], mine["fc_norm/scale"])
  assert "norm.weight" not in theirs and len(theirs) == 12 * 3 + 8
  config = json.loads((tmp_path / "a/config.json").read_text())
  assert config["model_args"]["global_pool"] == "avg" and config["label_names"] == CLASSES
  convert.write("transformers", tmp_path / "b", drawn("class token", 3))
  mine = drawn("class token", 3).params
  theirs = files.read_tensors(tmp_path / "b/model.safetensors")
  query = mine["Transformer/encoderblock_2/MultiHeadDotProductAttention_0/query/kernel"]
  np.testing.assert_array_equal(
    theirs["vit.layers.2.attention.q_proj.weight"], query.reshape(48, 48).T)
  np.testing.assert_array_equal(theirs["classifier.bias"], mine["head/bias"])
  config = json.loads((tmp_path / "b/config.json").read_text())
  assert config["id2label"]["3"] == "date" and config["label2id"]["date"] == 3
  assert config["image_size"] == [32, 24] and config["patch_size"] == [8, 4]


# facebookresearch/ijepa, of one block, by hand.
_BLOCK = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight",
          "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias",
          "mlp.fc2.weight", "mlp.fc2.bias"]


def test_ijepa_s_own_files_hold_encoder_predictor_and_teacher(tmp_path):
  first = drawn("I-JEPA", 5)
  convert.write("ijepa", tmp_path / "a", first)
  theirs = files.read_tensors(tmp_path / "a/model.safetensors")
  names = ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight",
           "norm.bias", *(f"blocks.{i}.{n}" for i in range(3) for n in _BLOCK)]
  want = {f"{part}.{n}" for part in ("encoder", "target_encoder") for n in names}
  want |= {f"predictor.{n}" for n in (
    "predictor_embed.weight", "predictor_embed.bias", "mask_token", "predictor_pos_embed",
    "predictor_norm.weight", "predictor_norm.bias", "predictor_proj.weight", "predictor_proj.bias",
    *(f"predictor_blocks.{i}.{n}" for i in range(2) for n in _BLOCK))}
  assert set(theirs) == want
  np.testing.assert_array_equal(theirs["predictor.predictor_proj.weight"],
                                first.params["predictor/out/kernel"].T)
  np.testing.assert_array_equal(
    theirs["target_encoder.blocks.1.mlp.fc1.bias"],
    first.params["teacher/Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias"])
  # As their code computes it: the angle is place / 10000^(k / (d / 4)), columns first.
  np.testing.assert_allclose(theirs["predictor.predictor_pos_embed"][0, 7, 8:16],
                             np.cos(2 / 10_000 ** (np.arange(8) / 8)), atol=1e-6)
  once = convert.read(tmp_path / "a")
  assert once.task == "ijepa"
  cases.assert_same(once.params, first.params)
  tasks.make("ijepa", once.model)


def published(side=8):
  """Of a width whose heads are published, as files do not tell them."""
  image = dict(width=192, depth=1, mlp_dim=16, num_heads=3, patch_size=4, image_size=4 * side,
               pool_type="none")
  return cases.weights("ijepa", {
    "image": image, "predictor": dict(width=12, depth=1, mlp_dim=16, num_heads=3)}, dtype="float16")


def test_ijepa_s_files_are_read_without_a_note(tmp_path):
  first = published()
  convert.write("ijepa", tmp_path / "a", first)
  (tmp_path / "a" / "export.json").unlink()
  found = convert.read(tmp_path / "a")
  cases.assert_same(found.params, first.params)
  image, predictor = found.model["image"], found.model["predictor"]
  assert image["num_heads"] == predictor["num_heads"] == 3 and image["image_size"] == 32
  # The settings are ones that the task takes.
  assert tasks.make("ijepa", found.model).image_size == 32


@pytest.mark.parametrize("change, message", [
  (lambda a: a.update({"predictor.predictor_pos_embed": a["predictor.predictor_pos_embed"] + 1}),
   "are not the fixed sines and cosines"),
  (lambda a: a.pop("target_encoder.norm.bias"), r"missing in it \(1\):\s+target_encoder.norm.bias"),
  (lambda a: a.update({"predictor.more": np.zeros(2, np.float32)}), "extra in it"),
])
def test_a_file_of_ijepa_that_is_not_whole_is_refused(tmp_path, change, message):
  convert.write("ijepa", tmp_path / "a", published())
  file = tmp_path / "a/model.safetensors"
  arrays = {n: np.array(x) for n, x in files.read_tensors(file).items()}
  change(arrays)
  found = Tensors(arrays)
  files.write_safetensors(file, {n: found.lazy(n) for n in found})
  with pytest.raises(ConvertError, match=f"(?s){message}"):
    convert.read(tmp_path / "a")


@pytest.mark.parametrize("form, task, model, message", [
  ("transformers", "classify", {"image": SIZES, "num_classes": 5}, "feature='mean'.*as timm"),
  ("timm", "classify", {"image": SIZES, "num_classes": 5, "probe": True}, "probe=True"),
  ("transformers", "classify", {"image": SIZES, "num_classes": 5, "probe": True}, "probe=True"),
  ("timm", "mae", cases.MAE | {"image": cases.MAE["image"] | dict(num_cls=8)}, "num_cls=8"),
  ("timm", ours.ENCODER, {"image": SIZES | dict(ln_eps=1e-5)}, "ln_eps=1e-05"),
  ("ijepa", "mae", cases.MAE, "task 'ijepa'.*task 'mae'"),
  ("ijepa", "ijepa", cases.IJEPA | {"image": BARE | dict(act="gelu_tanh")}, "act='gelu_tanh'"),
])
def test_what_a_format_cannot_hold_is_refused_in_words(tmp_path, form, task, model, message):
  with pytest.raises(ConvertError, match=message):
    convert.write(form, tmp_path / "a", cases.weights(task, model))
  convert.write("npz", tmp_path / "n", first := cases.weights(task, model))
  cases.assert_same(convert.read(tmp_path / "n").params, first.params)


@pytest.mark.parametrize("change, message", [
  (lambda c, a: c["model_args"].update(global_pool="token"), "pools by 'token' with a norm after"),
  (lambda c, a: [a.pop("head.weight"), a.pop("head.bias")], "a norm after pooling and no head"),
  (lambda c, a: a.update({"reg_token": np.zeros((1, 4, 48), np.float32)}), "register tokens"),
  (lambda c, a: a.update({"pos_embed": a["pos_embed"][:, 1:]}), "no square"),
])
def test_other_models_of_timm_are_refused_in_words(tmp_path, change, message):
  convert.write("timm", tmp_path / "a", drawn("mean"))
  (tmp_path / "a" / "export.json").unlink()
  arrays = {n: np.array(x) for n, x in files.read_tensors(tmp_path / "a/model.safetensors").items()}
  config = json.loads((tmp_path / "a/config.json").read_text())
  change(config, arrays)
  (tmp_path / "a/config.json").write_text(json.dumps(config))
  found = Tensors(arrays)
  files.write_safetensors(tmp_path / "a/model.safetensors", {n: found.lazy(n) for n in found})
  with pytest.raises(ConvertError, match=message):
    convert.read(tmp_path / "a")


@pytest.mark.parametrize("task, model", [(t, m) for t, m, _ in MODELS.values()
                                         if t in ("classify", "ijepa") and m["image"] is not OBLONG]
                         + [("classify", {"image": SIZES, "num_classes": 5, "probe": True})])
def test_the_arrays_of_a_task_are_those_that_its_model_makes(task, model):
  built = tasks.make(task, model)
  batch = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), built.batch_spec(2))
  made = sharding.unbox(jax.eval_shape(built.init, jax.random.key(0), batch))
  shapes = {n: x.shape for n, x in trees.flatten(made).items()}
  assert ours.shapes(task, model) == shapes
  # And of the settings as a run writes them out, which build the same task again.
  described = json.loads(json.dumps(weights.describe(task, model)))
  assert ours.shapes(task, described) == shapes
  again = tasks.make(task, described)
  assert again.vision == built.vision


def test_an_encoder_alone_is_a_start_of_training_and_no_model_to_load(tmp_path):
  """MAE's encoder from timm's folder begins a classifier, the final norm being of no use there."""
  from big_vision_ext.core.config import Init

  convert.write("timm", tmp_path / "a", drawn("masked autoencoder", 4))
  with pytest.raises(ConvertError, match="holds an encoder alone.*finetune"):
    weights.load(tmp_path / "a")
  shapes = ours.shapes("classify", {"image": SIZES, "num_classes": 5})
  start = trees.nest({n: jax.numpy.zeros(shape) for n, shape in shapes.items()})
  init = Init(str(tmp_path / "a"), allow_missing=("fc_norm/.*", "head/.*", "cls_pos_embedding"),
              allow_extra=("(?!Transformer/encoderblock).*",))
  found, origin = weights.init_params(init, start, jax.tree.map(lambda x: x.sharding, start))
  found = trees.flatten(found)
  want = kept("masked autoencoder", 4)
  for name, x in found.items():
    if not name.startswith(("head/", "fc_norm/")):
      np.testing.assert_array_equal(x, want[name], err_msg=name)
  assert origin["format"] == "timm"


def test_a_classifier_is_read_back_and_computes_the_same(tmp_path):
  model = {"image": SIZES, "num_classes": 5}
  first = cases.weights("classify", weights.describe("classify", model), seed=2)
  convert.write("timm", tmp_path / "a", first)
  (tmp_path / "a" / "export.json").unlink()
  loaded = weights.load(tmp_path / "a")
  assert loaded.task_name == "classify"
  batch = {"image": np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)}
  got = tasks.make("classify", loaded.model).logits(loaded.params, batch)
  want = tasks.make("classify", model).logits(trees.nest(dict(first.params)), batch)
  np.testing.assert_array_equal(got, want)


def test_the_middle_square_of_evaluation_is_told():
  model = convert.Weights(Tensors({}), "classify", MODELS["mean"][1], {"eval_crop": 0.875})
  cfg = timm_encoders.config(encoders.of(model, "timm"))["pretrained_cfg"]
  assert (cfg["crop_pct"], cfg["crop_mode"]) == (0.875, "center")
  np.testing.assert_allclose(cfg["mean"], (0.485, 0.456, 0.406))
