"""CLIP of OpenAI, transformers and open_clip: in and out bit by bit, and refusals in words.

That the libraries themselves agree is tested in tests/oracles/test_clip_parity.py.
"""

import json

import jax
import numpy as np
import pytest

from big_vision_ext import convert, weights
from big_vision_ext.convert import ConvertError, clip, files
from big_vision_ext.convert.lazy import of
from big_vision_ext.core import trees
from big_vision_ext.embedding import Embedder
from input_pipeline import text
from tests.convert import clip_towers as towers
from tests.convert.cases import assert_same
from tests.convert.test_torch_zip import Script, Storage, Tensor, write

FORMATS = ("openai_clip", "transformers", "open_clip", "npz")
# What only some formats can hold.
OTHER_HEADS = dict(image=towers.IMAGE | dict(num_heads=4, act="gelu"),
                   text=towers.TEXT | dict(num_heads=2, act="gelu"), bias_init=None)
OBLONG = dict(image=towers.IMAGE | dict(image_size=[12, 20], patch_size=[4, 5]), text=towers.TEXT,
              bias_init=-10.0)
OTHER_END = dict(image=towers.IMAGE | dict(ln_eps=1e-6),
                 text=towers.TEXT | dict(eot_id=7, act="gelu"), bias_init=None)


def forget(folder):
  """As if the folder were the library's own."""
  (folder / "export.json").unlink()
  return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_round_trip_keeps_every_bit_and_the_model(tmp_path, form, dtype):
  convert.write(form, tmp_path / "E", towers.weights(seed=1), dtype=dtype)
  read = convert.read(forget(tmp_path / "E"))
  assert (read.task, read.meta["format"]) == ("clip", form)
  assert_same(read.params, {n: x.astype(convert.DTYPES[dtype]) for n, x in towers.draw(
    seed=1).items()})
  for tower in ("image", "text"):
    want = towers.MODEL[tower]
    assert {k: read.model[tower][k] for k in want} == want
  assert read.model["bias_init"] is None
  if form != "npz":
    assert ("float16" in read.meta.get("precision", "")) == (dtype == "float16")
    assert read.input["canonicalize"] is False and read.input["mean"] == list(clip.MEAN)


@pytest.mark.parametrize("form, model", [
  ("transformers", OTHER_HEADS), ("open_clip", OTHER_HEADS), ("open_clip", OBLONG),
  ("transformers", OTHER_END)])  # fmt: skip
def test_a_library_that_can_hold_more_does(tmp_path, form, model):
  convert.write(form, tmp_path / "E", towers.weights(model, seed=2))
  read = convert.read(forget(tmp_path / "E"))
  assert_same(read.params, towers.draw(model, seed=2))
  for tower in ("image", "text"):
    assert {k: read.model[tower][k] for k in model[tower]} == model[tower]
  assert read.model["bias_init"] == model["bias_init"]


def test_formats_convert_into_each_other(tmp_path):
  found = towers.weights(seed=3)
  for form in (*FORMATS, "openai_clip"):
    convert.write(form, folder := tmp_path / f"{len(list(tmp_path.iterdir()))}-{form}", found)
    found = convert.read(folder)
  assert_same(found.params, towers.draw(seed=3))


def test_arrays_are_turned_as_openai_and_transformers_have_them(tmp_path):
  ours = towers.draw()
  for form in ("openai_clip", "transformers"):
    convert.write(form, tmp_path / form, towers.weights())
  theirs = files.read_tensors(tmp_path / "openai_clip" / "model.safetensors")
  hf = files.read_tensors(tmp_path / "transformers" / "model.safetensors")
  value = ours["img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/value/kernel"]
  packed = theirs["visual.transformer.resblocks.1.attn.in_proj_weight"]
  assert packed[2 * 128 + 70, 5] == value[5, 1, 6]
  assert hf["vision_model.encoder.layers.1.self_attn.v_proj.weight"][70, 5] == value[5, 1, 6]
  table = theirs["visual.positional_embedding"]
  np.testing.assert_array_equal(table[0], ours["img/cls_pos_embedding"][0, 0])
  np.testing.assert_array_equal(table[4], ours["img/pos_embedding"][0, 3])
  assert theirs["visual.proj"][100, 20] == ours["img/head/kernel"][100, 20]
  assert hf["visual_projection.weight"][20, 100] == ours["img/head/kernel"][100, 20]
  assert hf["text_projection.weight"][20, 50] == theirs["text_projection"][50, 20]
  assert theirs["visual.conv1.weight"][9, 2, 1, 3] == ours["img/embedding/kernel"][1, 3, 2, 9]
  assert theirs["logit_scale"].shape == () and theirs["logit_scale"] == ours["t"][0]
  # Image tower, text tower, temperature; 302 of the published B/16.
  assert len(theirs) == (8 + 2 * 12) + (5 + 3 * 12) + 1


def saved(tmp_path, wrap, rename=str, drop=(), half=True, **more):
  """A file of PyTorch's with OpenAI's names, its matrices in half precision."""
  given = towers.weights(seed=4)
  if half:
    given = clip.round_to_fp16(given)
  theirs = clip.export(clip.openai(), given, "openai_clip")
  arrays = {rename(n): theirs[n] for n in theirs if n not in drop} | more
  parts = ("conv1", "in_proj", "out_proj", ".mlp.", "visual.proj", "text_projection")
  matrices = {n for n in arrays if half and any(part in n for part in parts)}
  storages, tensors = [], {}
  for i, (name, x) in enumerate(arrays.items()):
    # Zero axes stay zero axes.
    x = np.array(x, np.float16 if name in matrices else None, order="C")
    storages.append(Storage(str(i), x.reshape(-1)))
    strides = tuple(s // x.itemsize for s in x.strides)
    tensors[name] = Tensor(storages[-1], 0, x.shape, strides)
  write(tmp_path / "clip.pt", wrap(tensors), storages)
  return tmp_path / "clip.pt", given


def script(tensors):
  """A TorchScript module with these arrays."""
  tree = {}
  for name, x in tensors.items():
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  as_script = lambda node: Script(training=False, **{
    k: as_script(v) if isinstance(v, dict) else v for k, v in node.items()})
  return as_script(tree)


SCALARS = {n: np.array(7) for n in ("input_resolution", "context_length", "vocab_size")}


@pytest.mark.parametrize("name, wrap, more", [
  ("plain", dict, {}), ("uniqa", lambda t: {"model_state_dict": t}, {}),
  ("script", script, SCALARS)])  # fmt: skip
def test_openais_own_files_are_read_and_half_precision_is_said_to_be_so(tmp_path, name, wrap, more):
  path, given = saved(tmp_path, wrap, **more)
  read = weights.read(path)
  assert (read.task, read.meta["format"]) == ("clip", "openai_clip")
  assert "float16" in read.meta["precision"] and read.meta["licence"] == "unknown"
  kept = {np.dtype(x.dtype) for x in read.params.values()}
  assert kept == {np.dtype(np.float16), np.dtype(np.float32)}
  # Widened on request, to what the original computes with.
  convert.write("npz", tmp_path / "E", read, dtype="float32")
  assert_same(convert.read(tmp_path / "E").params, dict(given.params))


def test_names_of_open_clips_custom_text_class_are_read(tmp_path):
  words = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
  path, given = saved(tmp_path, lambda t: {"state_dict": {f"module.{n}": x for n, x in t.items()}},
                      lambda n: f"text.{n}" if n.startswith(words) else n, half=False)
  assert_same(convert.read(path).params, dict(given.params))


def test_rounding_is_of_matrices_alone(tmp_path):
  first = towers.weights(seed=5)
  rounded = clip.round_to_fp16(first)
  kept = {n for n, x in first.params.items() if np.array_equal(x, rounded.params[n])}
  assert "img/Transformer/encoderblock_0/LayerNorm_0/scale" in kept
  for n, x in first.params.items():
    plain = any(part in n for part in ("Norm", "_norm", "embedding", "cls")) or n == "t"
    assert (n in kept) == (plain and "embedding/kernel" not in n), n
    np.testing.assert_allclose(rounded.params[n], x, rtol=2**-11, atol=2**-25)
    assert rounded.params[n].dtype == np.float32


def test_early_configs_and_buffers_of_transformers_are_read(tmp_path):
  convert.write("transformers", tmp_path / "E", towers.weights(seed=6))
  folder = forget(tmp_path / "E")
  config = json.loads((folder / "config.json").read_text())
  config["vision_config_dict"] = {"num_hidden_layers": config["vision_config"].pop(
    "num_hidden_layers")}
  config["text_config_dict"] = None
  (folder / "config.json").write_text(json.dumps(config))
  found = files.read_tensors(folder / "model.safetensors")
  found = {n: np.array(x) for n, x in found.items()}
  for tower in ("text", "vision"):
    found[f"{tower}_model.embeddings.position_ids"] = np.arange(10)[None]
  files.write_safetensors(folder / "model.safetensors", {n: of(x) for n, x in found.items()})
  assert_same(convert.read(folder).params, towers.draw(seed=6))


def test_what_a_config_says_of_the_end_of_a_text_is_followed(tmp_path):
  said = {}
  for vocab, eot in ((49_408, None), (37, None), (37, 36), (37, 5)):
    model = towers.MODEL | {"text": towers.TEXT | {"vocab_size": vocab, "eot_id": eot}}
    convert.write("transformers", tmp_path / f"{vocab}-{eot}", towers.weights(model))
    config = json.loads((tmp_path / f"{vocab}-{eot}" / "config.json").read_text())
    said[vocab, eot] = config["text_config"]["eos_token_id"]
  # 2 stands for the largest id of a text there.
  assert said == {(49_408, None): 49_407, (37, None): 2, (37, 36): 2, (37, 5): 5}


def test_a_resnet_is_refused_by_name(tmp_path):
  path, _ = saved(tmp_path, dict, **{"visual.layer1.0.conv1.weight": np.zeros((3, 3, 1, 1),
                                                                             np.float32)})
  with pytest.raises(ConvertError, match=r"clip.pt: its image tower is a ResNet \(as of RN50"):
    convert.read(path)
  convert.write("open_clip", tmp_path / "E", towers.weights())
  config = json.loads((tmp_path / "E" / "open_clip_config.json").read_text())
  config["model_cfg"]["vision_cfg"]["layers"] = [3, 4, 6, 3]
  (tmp_path / "E" / "open_clip_config.json").write_text(json.dumps(config))
  with pytest.raises(ConvertError, match="its image tower is a ResNet"):
    convert.read(tmp_path / "E")


def test_what_is_missing_or_extra_is_listed_by_name(tmp_path):
  more = {"visual.extra": np.zeros(3, np.float32)}
  path, _ = saved(tmp_path, dict, drop=("visual.ln_pre.bias", "logit_scale"), **more)
  with pytest.raises(ConvertError, match="(?s)missing in it.*visual.ln_pre.bias.*extra in it.*"
                     "visual.extra"):
    convert.read(path)


@pytest.mark.parametrize("form, model, message", [
  ("openai_clip", OTHER_HEADS, "act='gelu'"),
  ("openai_clip", towers.MODEL | {"text": towers.TEXT | {"num_heads": 2}}, "heads are 64 wide"),
  ("openai_clip", towers.MODEL | {"text": towers.TEXT | {"eot_id": 7}}, "eot_id=7"),
  ("openai_clip", OBLONG, "square images"), ("transformers", OBLONG, "square images"),
  ("open_clip", OTHER_END, "ln_eps=1e-06"),
  ("open_clip", towers.MODEL | {"text": towers.TEXT | {"eot_id": 7}}, "eot_id=7"),
  ("open_clip", towers.MODEL | {"text": towers.TEXT | {"act": "gelu"}}, "both towers have the sam"),
  ("transformers", towers.MODEL | {"image": towers.IMAGE | {"act": "gelu_tanh"}}, "gelu_tanh"),
  ("transformers", towers.MODEL | {"bias_init": -10.0}, r"no place for these.*\n  b"),
  ("timm", towers.MODEL, "holds plain towers"), ("mae", towers.MODEL, "masked autoencoders"),
])  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_in_words(tmp_path, form, model, message):
  with pytest.raises(ConvertError, match=message):
    convert.write(form, tmp_path / "E", towers.weights(model))


def test_a_card_says_how_to_load_and_whose_terms_hold(tmp_path):
  for form, line in (("openai_clip", "clip.model.build_model(state)"),
                     ("transformers", "CLIPModel.from_pretrained"),
                     ("open_clip", "open_clip.create_model_from_pretrained")):
    found = towers.weights(meta={"init": [{"path": "ViT-B-16.pt", "licence": "MIT"}]})
    convert.write(form, tmp_path / form, found)
    card = (tmp_path / form / "README.md").read_text()
    assert line in card and "a CLIP model" in card and "ViT-B-16.pt: MIT" in card
    assert "OpenAI's CLIP under MIT" in card and "the shorter side resized to 12 px" in card


def test_weights_of_any_format_encode_images(tmp_path):
  convert.write("openai_clip", tmp_path / "E", towers.weights(seed=7))
  embedder = Embedder(tmp_path / "E")
  assert not embedder.task.vision.scan and embedder.task.vision.pooled_only
  image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
  pooled = embedder(image)["pooled"]
  features = jax.jit(embedder.task.image_features, compiler_options={
    "xla_backend_optimization_level": 0})(
      trees.nest(towers.draw(seed=7)), {"image": image[None]})[0]
  np.testing.assert_allclose(pooled, features / np.linalg.norm(features), atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_the_vocabulary_goes_with_the_weights(tmp_path, form):
  (tmp_path / "bpe.txt").write_text("#version: 0.2\ng o\ngo o\ngoo d</w>\n")
  spec = f"clip:{tmp_path / 'bpe.txt'}"
  convert.write(form, tmp_path / "E", towers.weights(input={"tokenizer": spec, "text_len": 10}))
  moved = (tmp_path / "E").rename(tmp_path / "M")
  found = convert.read(moved).input["tokenizer"]
  assert found.startswith(f"clip:{moved}/")
  rows = [text.make_tokenizer(name).tokenize("Good goose", 10) for name in (spec, found)]
  np.testing.assert_array_equal(*rows)
