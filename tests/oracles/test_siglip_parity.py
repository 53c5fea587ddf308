"""SigLIP here and in transformers, timm and open_clip: features, loss and every gradient agree.

Both directions are run: folders that we write are loaded there, and folders that those libraries
write of freshly drawn models are read here. Every tensor is random, in several seeds.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers

from big_vision_ext import convert
from big_vision_ext.convert import open_clip, siglip, tables, timm, timm_vits, transformers
from big_vision_ext.core import trees
from big_vision_ext.models import two_towers, vit
from big_vision_ext.objectives import contrastive
from input_pipeline import text
from tests.convert.siglip_towers import IMAGE, TEXT, draw
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value. Both sides sum in float32, each in its own order, over at
# most 384 numbers through five blocks. Measured: 5e-7 for unit vectors, 1e-6 for logits, which are
# them times a temperature of about 3, 2e-6 for gradients, and 4e-6 for that of the temperature, a
# sum in which much cancels.
FEATURES, GRADIENTS = 3e-6, 1e-5

WIDE = TEXT | dict(width=48, num_heads=4)
EXACT = dict(act="gelu")
BOTH = dict(image=IMAGE, text=TEXT, bias_init=-10.0)
BOTH_EXACT = dict(image=IMAGE | EXACT, text=TEXT | EXACT, bias_init=-10.0)
OBLONG = IMAGE | dict(image_size=(32, 48), patch_size=(8, 16))

# name -> (environment, format, model, seed): what we write and they load.
EXPORTS = {
  **{f"transformers-{i}": ("siglip", "transformers", BOTH, i) for i in range(3)},
  "transformers-exact": ("siglip", "transformers", BOTH_EXACT, 3),
  "transformers-no-head": (
    "siglip", "transformers", dict(image=IMAGE, text=WIDE | dict(out_dim=0), bias_init=None), 4),
  "transformers-4": ("ps3", "transformers", dict(image=IMAGE, text=WIDE, bias_init=-10.0), 5),
  **{f"open_clip-{i}": ("siglip", "open_clip", BOTH, i) for i in range(3)},
  "open_clip-exact": ("siglip", "open_clip", BOTH_EXACT, 3),
  "open_clip-mixed": (
    "siglip", "open_clip", dict(image=IMAGE | EXACT, text=TEXT, bias_init=None), 4),
  **{f"timm-{i}": ("siglip", "timm", dict(image=OBLONG, text=None), i) for i in range(3)},
  "timm-exact-mean": (
    "siglip", "timm", dict(image=IMAGE | EXACT | dict(pool_type="gap"), text=None), 3),
  "timm-1.0.15": ("ps3", "timm", dict(image=IMAGE, text=None), 4),
}

_HF_TEXT = dict(hidden_size=32, num_hidden_layers=3, intermediate_size=56, num_attention_heads=2,
                vocab_size=37, max_position_embeddings=10, projection_size=48)
_HF_WIDE = _HF_TEXT | dict(hidden_size=48, num_attention_heads=4)
_HF_IMAGE = dict(hidden_size=48, num_hidden_layers=2, intermediate_size=80, num_attention_heads=3,
                 patch_size=8, image_size=32)
_HF_NAFLEX = {k: v for k, v in _HF_IMAGE.items() if k != "image_size"} | dict(num_patches=16)
_HF_EXACT = dict(hidden_act="gelu")
_TIMM = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_ratio=80 / 48,
             num_classes=0)

# name -> (environment, case): what they draw and save and we read. Which of our models must come
# out of it is found by reading, and what it computes is compared.
MADE = {
  "made-transformers": ("siglip", {
    "peer": "transformers", "class": "SiglipModel", "shard": "30KB",
    "model": dict(text_config=_HF_TEXT, vision_config=_HF_IMAGE)}),
  "made-transformers-pickled": ("siglip", {
    "peer": "transformers", "class": "SiglipModel", "pickled": True,
    "model": dict(text_config=_HF_TEXT | _HF_EXACT, vision_config=_HF_IMAGE | _HF_EXACT)}),
  "made-transformers-vision": ("siglip", {
    "peer": "transformers", "class": "SiglipVisionModel", "model": _HF_IMAGE}),
  "made-transformers-naflex": ("siglip", {
    "peer": "transformers", "class": "Siglip2Model",
    "model": dict(text_config=_HF_TEXT, vision_config=_HF_NAFLEX)}),
  "made-transformers-4": ("ps3", {
    "peer": "transformers", "class": "SiglipModel",
    "model": dict(text_config=_HF_WIDE, vision_config=_HF_IMAGE)}),
  "made-transformers-4-vision": ("ps3", {
    "peer": "transformers", "class": "SiglipVisionModel", "model": _HF_IMAGE}),
  "made-timm": ("siglip", {
    "peer": "timm", "architecture": "vit_base_patch32_siglip_256", "model": _TIMM}),
  "made-timm-mean": ("siglip", {
    "peer": "timm", "architecture": "vit_base_patch16_siglip_gap_224", "pickled": True,
    "model": _TIMM}),
  "made-open_clip": ("siglip", {
    "peer": "open_clip",
    "trunk": {"architecture": "vit_base_patch32_siglip_256", "model_args": _TIMM,
              "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 0}},
    "model": dict(
      embed_dim=48, init_logit_bias=-10,
      vision_cfg=dict(image_size=32, timm_pool="map", timm_proj="none"),
      text_cfg=dict(context_length=10, vocab_size=37, width=32, heads=2, layers=3, mlp_ratio=1.75,
                    no_causal_mask=True, proj_bias=True, pool_type="last",
                    norm_kwargs={"eps": 1e-6}))}),
}


def inputs(model, seed):
  """Images, ids and cotangent of a model."""
  rng = np.random.default_rng(100 + seed)
  _, (height, width) = siglip.sides(model["image"])
  images = rng.standard_normal((5, height, width, 3)).astype(np.float32)
  cotangent = rng.standard_normal((5, model["image"]["width"])).astype(np.float32)
  sizes = model["text"] or TEXT
  return images, rng.integers(0, sizes["vocab_size"], (5, sizes["text_len"])), cotangent


@functools.cache
def compiled(spec):
  """Features, logits, loss and gradients of our model, given by its config as JSON."""
  spec = json.loads(spec)
  image = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["image"].items()}
  if spec["text"] is None:
    tower = vit.build(vit.ViT, image)

    def loss(params, images, ids, cotangent):
      z = tower.apply({"params": params["img"]}, images)[0]
      return jnp.sum(z * cotangent), {"image": z}
  else:
    towers = two_towers.TwoTowers(image, spec["text"], bias_init=spec["bias_init"])

    def loss(params, images, ids, cotangent):
      zimg, ztxt, out = towers.apply({"params": params}, images, ids)
      bias = out.get("b", 0.0)
      value, _ = contrastive.sigmoid_loss(zimg, ztxt, out["t"], bias)
      logits = contrastive.similarities(zimg, ztxt) * out["t"] + bias
      return value, {"logits": logits, "zimg": zimg, "ztxt": ztxt}

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def ours(model, params, given):
  """What our model makes of the inputs: arrays by name, gradients under our names."""
  # What is said and what is left at its default is one program.
  spec = {"image": {"act": "gelu_tanh", "pool_type": "map", "num_classes": 0} | model["image"],
          "text": model["text"] and {"act": "gelu_tanh", "pool_type": "last"} | model["text"],
          "bias_init": model.get("bias_init", -10.0)}
  tree = trees.nest({name: np.asarray(params[name]) for name in params})
  (loss, out), grads = compiled(json.dumps(spec, sort_keys=True))(tree, *given)
  return {**out, "loss": loss}, trees.flatten(jax.device_get(grads))


# Published models by their names there: what they are made of must be what our tables say.
PUBLISHED = {
  "transformers": {
    "so400m": dict(
      text_config=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                       num_attention_heads=16),
      vision_config=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                         num_attention_heads=16, patch_size=14, image_size=384))},
  "open_clip": {"ViT-B-16-SigLIP": None, "ViT-gopt-16-SigLIP2-256": None},
  "timm": {name: None for name in timm_vits.VITS if "_siglip_" in name},
}


def published(peer, name):
  """Our model of a published one."""
  if peer == "timm":
    s = timm_vits.VITS[name]
    image = dict(width=s.width, depth=s.depth, mlp_dim=s.mlp_dim, num_heads=s.num_heads,
                 patch_size=s.patch_size, image_size=s.image_size)
    return dict(image=image, text=None)
  image, words, vocab, pixels = {
    "so400m": ("So400m/14", "So400m", 32_000, 384),
    "ViT-B-16-SigLIP": ("B/16", "B", 32_000, 224),
    "ViT-gopt-16-SigLIP2-256": ("g-opt/16", "So400m", 256_000, 256),
  }[name]
  image = vit.variant(image) | dict(image_size=pixels)
  words = vit.variant(words) | dict(vocab_size=vocab, text_len=64, out_dim=image["width"])
  return dict(image=image, text=words, bias_init=-10.0)


# "</s>" ends and pads a text; in the SentencePiece model other ids than the default ones.
CORPUS = [f"a handwritten {w} on a {c} tag" for w in ("seven", "two", "nine") for c in "rgbw"] * 9
TEXTS = ["a red tag", "two handwritten nines on a g", "", "A Tag, Two: seven's",
         "a handwritten seven on a white tag and more than fits into ten pieces"]
TOKENIZERS = [(peer, kind) for peer in ("transformers", "open_clip")
              for kind in ("sentencepiece", "tokenizers")]


def tokenizer_files(folder):
  """A file of each kind, {kind: spec}."""
  with open(folder / "tiny.model", "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_writer=f, vocab_size=37, pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, minloglevel=2, hard_vocab_limit=False)
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
    vocab_size=37, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False))
  model.save(str(folder / "tiny.json"))
  return {"sentencepiece": f"sentencepiece:{folder}/tiny.model?pad=1",
          "tokenizers": f"tokenizers:{folder}/tiny.json?pad=0,eos=1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """{name: (folder, format, seed, what the peer found)}; one process for each environment."""
  root = tmp_path_factory.mktemp("siglip")
  cases, arrays, about = {"siglip": [], "ps3": []}, {}, {}
  for name, (env, format, model, seed) in EXPORTS.items():
    weights = convert.Weights(draw(model, seed), "siglip", model, {}, {})
    convert.write(format, root / name, weights)
    cases[env].append({"name": name, "kind": "load", "peer": format})
    about[name] = (env, format, model, seed)
  for seed, (name, (env, case)) in enumerate(MADE.items()):
    cases[env].append({"name": name, "kind": "make", "seed": seed, **case})
    about[name] = (env, case["peer"], BOTH, seed)
  for env in cases.values():
    for case in env:
      name = case["name"]
      keys = [f"{name}/{key}" for key in ("images", "ids", "cotangent")]
      arrays |= dict(zip(keys, inputs(*about[name][2:])))
      case |= dict(zip(("images", "ids", "cotangent"), keys), folder=str(root / name))
  cases["siglip"] += [
    {"name": f"{peer}:{name}", "kind": "shapes", "peer": peer, "model": said or name}
    for peer, models in PUBLISHED.items() for name, said in models.items()]
  for kind, spec in tokenizer_files(root).items():
    weights = convert.Weights(draw(BOTH), "siglip", BOTH, {"tokenizer": spec, "text_len": 10}, {})
    for peer in ("transformers", "open_clip"):
      convert.write(peer, root / f"{peer}-{kind}", weights)
      cases["siglip"].append({"name": f"{peer}-{kind}", "kind": "tokenize", "peer": peer,
                              "folder": str(root / f"{peer}-{kind}"), "texts": TEXTS})
  found = {
    env: harness.run("siglip_oracle.py", env=env, arrays=arrays, settings=listed)
    for env, listed in cases.items()
  }
  about |= {case["name"]: ("siglip", case["peer"], None, 0) for case in cases["siglip"]
            if case["name"] not in about}
  return {
    name: (root / name, format, seed,
           {key.removeprefix(f"{name}/"): x for key, x in found[env].items()
            if key.startswith(f"{name}/")})
    for name, (env, format, _, seed) in about.items()
  }


@pytest.mark.parametrize("name", [*EXPORTS, *MADE])
def test_features_loss_and_all_gradients_are_those_of_the_library(runs, name):
  folder, format, seed, theirs = runs[name]
  read = convert.read(folder)
  assert read.meta["format"] == format
  model, params = read.model, read.params
  if name in EXPORTS:
    model, params = EXPORTS[name][2], draw(EXPORTS[name][2], seed)
  given = inputs(model, seed)
  out, grads = ours(model, params, given)

  if model["text"] is None:
    worst = {"image": error(out["image"], theirs["image"])}
  else:
    unit = {key: x / np.linalg.norm(x, axis=1, keepdims=True) for key in ("image", "text")
            for x in [theirs[key]]}
    worst = {key: error(out[f"z{short}"], unit[key])
             for key, short in (("image", "img"), ("text", "txt"))}
    worst |= {key: error(out[key], theirs[key]) for key in ("logits", "loss")}
  assert max(worst.values()) <= FEATURES, worst

  mine = their_names(format, model, grads, read.meta.get("model_type") == "siglip2")
  want = {key.removeprefix("grad/"): x for key, x in theirs.items() if key.startswith("grad/")}
  if name == "made-transformers-vision":
    mine = {n.removeprefix("vision_model."): x for n, x in mine.items()}
  # What we do not have and they cannot do without: an identity for a head, a bias of zero.
  added = set()
  if name == "transformers-no-head":
    added = {"text_model.head.weight", "text_model.head.bias", "logit_bias"}
  assert set(want) == set(mine) | added
  largest = max(np.abs(x).max() for x in want.values())
  # Some gradients are zeros of rounded terms (that of a key's bias): compared with the largest.
  errors = {n: np.abs(g - want[n]).max() / max(np.abs(want[n]).max(), 1e-2 * largest)
            for n, g in mine.items()}
  assert max(errors.values()) <= GRADIENTS, sorted(errors.items(), key=lambda e: -e[1])[:5]


@pytest.mark.parametrize(
  "peer, name", [(peer, name) for peer, models in PUBLISHED.items() for name in models])
def test_published_models_have_the_names_and_shapes_of_the_table(runs, peer, name):
  _, _, _, theirs = runs[f"{peer}:{name}"]
  model = published(peer, name)
  table = {"transformers": transformers.table(False), "open_clip": open_clip.TABLE,
           "timm": timm.TABLE}[peer]
  found = tables.matches(table, siglip.shapes(model), peer)
  want = {n: shape for match in found for n, shape in match.theirs.items()}
  shapes = {key.removeprefix("shape/"): tuple(x) for key, x in theirs.items()
            if key.startswith("shape/")}
  assert shapes == want
  if peer == "timm":
    known = timm_vits.VITS[name]
    assert (str(theirs["act"]), int(theirs["heads"])) == (known.act, known.num_heads)


@pytest.mark.parametrize("peer, kind", TOKENIZERS)
def test_tokenizers_give_the_ids_of_the_run_also_after_reading(runs, tmp_path, peer, kind):
  folder, _, _, theirs = runs[f"{peer}-{kind}"]
  spec = tokenizer_files(tmp_path)[kind]
  # A tokenizer.json knows nothing of SigLIP's canonical text: transformers takes it as it is.
  raw = (peer, kind) == ("transformers", "tokenizers")
  texts = TEXTS if raw else [text.canonicalize(t) for t in TEXTS]
  for found in (spec, convert.read(folder).input["tokenizer"]):
    tokenizer = text.make_tokenizer(found)
    want = np.stack([tokenizer.tokenize(t, 10) for t in texts])
    np.testing.assert_array_equal(theirs["ids"], want)


def their_names(format, model, grads, naflex):
  """Our gradients under their names. All transforms permute, so gradients go the way of values."""
  table = {"transformers": transformers.table(naflex), "open_clip": open_clip.TABLE,
           "timm": timm.TABLE}[format]
  out = tables.export(table, siglip.shapes(model), grads, format=format)
  return {name: out[name] for name in out}


def error(got, want):
  """Largest difference over the largest value."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape
  return np.abs(got - want).max() / np.abs(want).max()
