"""CLIP here and in transformers and open_clip: features, logits, loss and every gradient agree.

Both directions are run: folders that we write are loaded there, and what those libraries write of
freshly drawn models, as folders, as files of `torch.save` and as TorchScript, is read here. Every
tensor is random, in several seeds. And the tokenizer, on the published vocabulary.
"""

import functools
import json

import jax
import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import clip, ours, tables
from big_vision_ext.core import trees
from big_vision_ext.models import two_towers, vit
from big_vision_ext.objectives import contrastive
from big_vision_ext.tasks import clip as task
from input_pipeline import clip_tokenizer, text
from tests.convert.clip_towers import IMAGE, MODEL, TEXT, draw
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value. Both sides sum in float32, each in its own order, over at
# most 128 numbers through five blocks.
FEATURES, GRADIENTS = 1e-5, 1e-5

EXACT = dict(act="gelu")
MODEL_EXACT = dict(image=IMAGE | EXACT, text=TEXT | EXACT, bias_init=None)
OBLONG = MODEL | dict(image=IMAGE | dict(image_size=[12, 20], patch_size=[4, 5]))

# name -> (format, model, seed): what we write and they load.
EXPORTS = {
  **{f"transformers-{i}": ("transformers", MODEL, i) for i in range(2)},
  "transformers-exact": ("transformers", MODEL_EXACT, 2),
  "open_clip": ("open_clip", MODEL, 3),
  "open_clip-exact": ("open_clip", MODEL_EXACT, 4),
  "open_clip-oblong": ("open_clip", OBLONG, 5),
}

_HF = dict(
  projection_dim=24,
  text_config=dict(hidden_size=64, num_hidden_layers=3, intermediate_size=56, vocab_size=37,
                   num_attention_heads=1, max_position_embeddings=10, bos_token_id=35,
                   eos_token_id=36, pad_token_id=1),
  vision_config=dict(hidden_size=128, num_hidden_layers=2, intermediate_size=80, patch_size=4,
                     num_attention_heads=2, image_size=12))
_HF_EXACT = _HF | {k: _HF[k] | dict(hidden_act="gelu") for k in ("text_config", "vision_config")}
_NATIVE = dict(
  embed_dim=24, quick_gelu=True,
  vision_cfg=dict(image_size=12, layers=2, width=128, patch_size=4, mlp_ratio=80 / 128),
  text_cfg=dict(context_length=10, vocab_size=37, width=64, heads=1, layers=3, mlp_ratio=56 / 64))

# name -> case: what they draw and save and we read; all of the sizes of MODEL.
MADE = {
  "made-transformers": {"peer": "transformers", "model": _HF},
  "made-transformers-exact-old": {"peer": "transformers", "model": _HF_EXACT, "pickled": True},
  "made-open_clip": {"peer": "open_clip", "model": _NATIVE},
  "made-open_clip-custom": {
    "peer": "open_clip", "model": _NATIVE | dict(custom_text=True, quick_gelu=False)},
  "made-file": {"peer": "open_clip", "model": _NATIVE, "file": True},
  "made-traced": {"peer": "open_clip", "model": _NATIVE, "traced": True},
}
PUBLISHED = {"ViT-B-32-quickgelu": "B/32", "ViT-B-16-quickgelu": "B/16",
             "ViT-L-14-336-quickgelu": "L/14@336"}

# Prompts of UniQA with the ids that its specification has, and what is hard.
PROMPTS = {"bad": 2103, "poor": 3665, "fair": 2849, "good": 886, "perfect": 1878}
PLAIN = ["a photo of a cat, sharp and well-exposed", "it's 2024: I'd say 12x better!!", "",
         "A Blurry   PICTURE\twith noise-free sky \U0001f600\U0001f44d\U0001f3fd",
         "caf\u00e9 na\u00efve \u4f60\u597d",
         "a long text that does not fit " * 20]  # fmt: skip
TEXTS = [*(f"{word} image" for word in PROMPTS), *PLAIN,
         "&lt;b&gt; &amp;amp; &quot;x&quot; &eacute;", "a <|endoftext|> b",
         "fish &amp; chips\u2019 \u201cbest\u201d \ufb01ne \uff21\uff22"]  # fmt: skip


def inputs(model, seed):
  """Images and ids of a model, each text with its end somewhere."""
  rng = np.random.default_rng(100 + seed)
  size = np.broadcast_to(model["image"]["image_size"], 2)
  ids = rng.integers(0, 36, (5, 10))
  ids[np.arange(5), [9, 1, 4, 6, 2]] = 36
  ids[3, 8] = 36
  return rng.standard_normal((5, *size, 3)).astype(np.float32), ids


@functools.cache
def compiled(spec):
  """Features, logits, loss and gradients of our model, given by its config as JSON."""
  spec = json.loads(spec)
  image = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["image"].items()}
  # With one activation the last block is computed for the class token alone, with the other not.
  image["pooled_only"] = image["act"] == "quick_gelu"
  towers = two_towers.TwoTowers(image, spec["text"], bias_init=None)

  def loss(params, images, ids):
    zimg, ztxt, out = towers.apply({"params": params}, images, ids)
    value, _ = contrastive.softmax_loss(zimg, ztxt, out["t"])
    of_text = towers.apply({"params": params}, method=lambda m: m.txt(ids)[0])
    return value, {"logits": contrastive.similarities(zimg, ztxt) * out["t"],
                   "image_features": out["img"]["logits"], "text_features": of_text}

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def vocabulary():
  """The published vocabulary, as open_clip ships it."""
  found = harness.run("clip_oracle.py", env="siglip", settings=[
    {"name": "v", "kind": "vocabulary"}])  # fmt: skip
  return str(found["v/path"])


@pytest.fixture(scope="module")
def runs(root, vocabulary):
  """{name: what the peer found}; one process for all cases."""
  cases, arrays = [], {}
  for name, (form, model, seed) in EXPORTS.items():
    convert.write(form, root / name, convert.Weights(draw(model, seed), "clip", model))
    cases.append({"name": name, "kind": "load", "peer": form, "folder": str(root / name)})
    given(arrays, cases[-1], model, seed)
  for seed, (name, case) in enumerate(MADE.items()):
    cases.append({"name": name, "kind": "make", "seed": seed, "folder": str(root / name), **case})
    given(arrays, cases[-1], MODEL, seed)
  cases.append({"name": "half", "kind": "make", "seed": 7, "folder": str(root / "half"),
                "peer": "open_clip", "model": _NATIVE, "half": True})
  cases += [{"name": name, "kind": "shapes", "model": name} for name in PUBLISHED]
  arrays["table"] = np.random.default_rng(0).standard_normal((17, 8)).astype(np.float32)
  for name, size in (("larger", [28, 20]), ("smaller", [8, 12])):
    vision = _NATIVE["vision_cfg"] | dict(image_size=size)
    cases.append({"name": name, "kind": "resize", "table": "table",
                  "model": _NATIVE | dict(vision_cfg=vision)})
  weights = convert.Weights(draw(MODEL), "clip", MODEL, {
    "tokenizer": f"clip:{vocabulary}", "text_len": 77})  # fmt: skip
  convert.write("transformers", root / "tokens", weights)
  convert.write("open_clip", root / "tokens_open", weights)
  # One folder for both libraries.
  for name in ("open_clip_config.json", "open_clip_model.safetensors"):
    (root / "tokens_open" / name).rename(root / "tokens" / name)
  settings = json.loads((root / "tokens" / "open_clip_config.json").read_text())
  settings["model_cfg"]["text_cfg"]["context_length"] = 77
  (root / "tokens" / "open_clip_config.json").write_text(json.dumps(settings))
  cases.append({"name": "tokens", "kind": "tokenize", "folder": str(root / "tokens"),
                "texts": TEXTS, "plain": PLAIN})
  found = harness.run("clip_oracle.py", env="siglip", arrays=arrays, settings=cases)
  return {case["name"]: {key.removeprefix(f"{case['name']}/"): x for key, x in found.items()
                         if key.startswith(f"{case['name']}/")} for case in cases}


def given(arrays, case, model, seed):
  images, ids = inputs(model, seed)
  keys = {key: f"{case['name']}/{key}" for key in ("images", "ids")}
  arrays |= {keys["images"]: images, keys["ids"]: ids}
  case |= keys


@pytest.mark.parametrize("name", [*EXPORTS, *MADE])
def test_features_loss_and_all_gradients_are_those_of_the_library(runs, root, name):
  read = convert.read(next((root / name).glob("*.pt"), root / name))
  model, params, seed = read.model, read.params, [*MADE].index(name) if name in MADE else None
  if name in EXPORTS:
    _, model, seed = EXPORTS[name]
    params = draw(model, seed)
  theirs = runs[name]
  spec = {k: {f: v for f, v in sorted(model[k].items())} for k in ("image", "text")}
  tree = trees.nest({n: np.asarray(params[n]) for n in params})
  (loss, out), grads = compiled(json.dumps(spec))(tree, *inputs(model, seed))
  worst = {key: error(out[key], theirs[key]) for key in out} | {"loss": error(loss, theirs["loss"])}
  assert max(worst.values()) <= FEATURES, worst

  format = read.meta["format"]
  table = clip.transformers() if format == "transformers" else clip.openai(
    "text." if name.endswith("custom") else "")
  mine = tables.export(table, ours.shapes("clip", model), trees.flatten(jax.device_get(grads)),
                       format=format)
  want = {key.removeprefix("grad/"): x for key, x in theirs.items() if key.startswith("grad/")}
  assert set(want) == set(mine)
  largest = max(np.abs(x).max() for x in want.values())
  # Some gradients are zeros of rounded terms (that of a key's bias): compared with the largest.
  errors = {n: np.abs(mine[n] - want[n]).max() / max(np.abs(want[n]).max(), 1e-2 * largest)
            for n in want}
  assert max(errors.values()) <= GRADIENTS, sorted(errors.items(), key=lambda e: -e[1])[:5]


def test_halving_rounds_what_openai_rounds(runs, root):
  """open_clip's conversion to half precision is OpenAI's."""
  read = convert.read(root / "half" / "clip.pt")
  assert "float16" in read.meta["precision"]
  half = {n for n, (_, dtype) in read.params.specs().items() if dtype == np.float16}
  wide = convert.Weights({n: np.float32(read.params[n]) for n in read.params}, "clip", read.model)
  noisy = {n: x + np.float32(1e-5) * np.abs(x) for n, x in wide.params.items()}
  rounded = clip.round_to_fp16(convert.Weights(noisy, "clip", read.model)).params
  assert {n for n in noisy if not np.array_equal(rounded[n], noisy[n])} == half


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_names_and_shapes_of_the_table(runs, name):
  image, words = task.sizes(PUBLISHED[name])
  model = {"image": clip.IMAGE | image, "bias_init": None,
           "text": clip.TEXT | words | dict(vocab_size=49_408, text_len=77,
                                            out_dim=image["num_classes"])}
  found = tables.matches(clip.openai(), ours.shapes("clip", model), "open_clip")
  shapes = {k.removeprefix("shape/"): tuple(x) for k, x in runs[name].items()}
  assert shapes == {n: shape for match in found for n, shape in match.theirs.items()}


@pytest.mark.parametrize("name, grid", [("larger", (7, 5)), ("smaller", (2, 3))])
def test_positions_are_resized_as_by_open_clip(runs, name, grid):
  table = np.random.default_rng(0).standard_normal((17, 8)).astype(np.float32)
  model = vit.ViT(8, 1, 8, 1, (4, 4), 4, posemb_fit="stretch", pool_type="gap")
  got = model.apply({"params": {"pos_embedding": table[None, 1:]}}, *grid, method="posemb")
  np.testing.assert_array_equal(runs[name]["table"][0], table[0])
  # PyTorch's antialiased bicubic has A=-0.5, as ours; sums of at most 16 float32 numbers.
  np.testing.assert_allclose(runs[name]["table"][1:], got, atol=2e-6)


def test_ids_are_those_of_the_published_vocabulary(runs, root, vocabulary):
  folder = root / "tokens"
  forms = [vocabulary, str(folder), str(folder / "vocab.json")]
  want = runs["tokens"]["ids"]
  for path in forms:
    found = text.make_tokenizer(f"clip:{path}")
    assert (found.vocab_size, found.start_id, found.eos_id) == (49_408, 49_406, 49_407)
    rows = np.stack([found.tokenize(t, 77) for t in TEXTS])
    np.testing.assert_array_equal(rows, want)
  for row, word in zip(want, PROMPTS.values()):
    assert row[:5].tolist() == [49_406, word, 2867, 49_407, 0]
  assert want[len(PROMPTS) + len(PLAIN) - 1][-1] == 49_407  # cut, with its end
  np.testing.assert_array_equal(runs["tokens"]["local"], want)
  # transformers pads with the end of texts, and reads no entities.
  ours = want[len(PROMPTS):][: len(PLAIN)]
  np.testing.assert_array_equal(
    runs["tokens"]["transformers"], np.where(np.cumsum(ours == 49_407, 1) > 0, 49_407, ours))
  assert len(clip_tokenizer.read_vocabulary(vocabulary)[1]) == 48_894


def error(got, want):
  """Largest difference over the largest value."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape
  return np.abs(got - want).max() / np.abs(want).max()
