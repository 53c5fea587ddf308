"""Encoders and classifiers here, in timm and in transformers: what they compute, every gradient.

Folders that we write are loaded there, whole, and folders that they write are read here. Everything
is random, and neither images nor patches are square where the library can do that.
"""

import jax
import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import encoders, files, lazy, ours, tables, vit_mae, vit_tables
from big_vision_ext.core import trees
from big_vision_ext.models import classifier, ijepa, mae
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value, float32 on both sides, sums of at most 192 numbers through
# three blocks.
TOLERANCE = 1e-5
IMAGE = dict(width=48, depth=3, mlp_dim=96, num_heads=3, patch_size=8, image_size=(32, 48))
DECODER = dict(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=16)
BARE = IMAGE | dict(pool_type="none")
IJEPA = {"image": BARE, "predictor": dict(width=32, depth=1, mlp_dim=56, num_heads=4)}
_HF = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96,
           patch_size=8, image_size=[32, 48], layer_norm_eps=1e-6)
_TIMM = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2.0)
# Peer, task, model of folders that we write.
LOADED = {
  "timm-mae": ("timm", "mae", {"image": IMAGE | DECODER}),
  "timm-ijepa": ("timm", "ijepa", IJEPA),
  "timm-mean": ("timm", "classify", {"image": IMAGE, "num_classes": 7}),
  "timm-mean-bare": ("timm", "classify", {"image": BARE, "num_classes": 7}),
  "timm-cls": ("timm", "classify", {"image": IMAGE, "num_classes": 7, "feature": "cls"}),
  "hf-cls": ("transformers", "classify", {"image": IMAGE, "num_classes": 7, "feature": "cls"}),
  "hf-ijepa": ("transformers", "ijepa", IJEPA),
  "hf-vit": ("transformers", ours.ENCODER, {"image": IMAGE | dict(pool_type="tok")}),
  # Which library takes squares only.
  "hf-pixio": ("transformers", "mae", {"image": IMAGE | DECODER | dict(num_cls=4, image_size=32)}),
}
MADE = {
  "made-timm-mae": dict(peer="timm", architecture="vit_base_patch16_224.mae",
                        model=_TIMM | dict(num_classes=0)),
  "made-timm-mean": dict(peer="timm", architecture="vit_base_patch16_224",
                         model=_TIMM | dict(num_classes=7, global_pool="avg")),
  "made-timm-ijepa": dict(peer="timm", architecture="vit_huge_patch14_gap_224.in1k_ijepa",
                          model=_TIMM | dict(num_classes=0)),
  "made-hf-cls": {"peer": "transformers", "class": "ViTForImageClassification",
                  "model": _HF | dict(num_labels=7)},
  "made-hf-ijepa": {"peer": "transformers", "class": "IJepaModel", "model": _HF},
  "made-hf-pixio": {"peer": "transformers", "class": "PixioModel", "model": {
    **{k: v for k, v in _HF.items() if k != "intermediate_size"}, "mlp_ratio": 2,
    "n_cls_tokens": 4, "image_size": 32}},
}


def drawn(name):
  _, task, model = LOADED[name]
  rng, params = np.random.default_rng(len(name)), {}
  for n, shape in ours.shapes(task, model).items():
    scale = 1 / np.sqrt(max(np.prod(shape[:-1]), 1)) if n.endswith("kernel") else 0.3
    mean = 1.0 if n.endswith("scale") else 0.0
    params[n] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
  known = {"classes": [f"class {i}" for i in range(7)]} if task == "classify" else {}
  return convert.Weights(lazy.Tensors(params), task, model, known)


def pixels(name=""):
  shape = (3, 32, 32 if "pixio" in name else 48, 3)
  return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def normalised(x):
  return ((x / 255.0 - vit_mae.MEAN) / vit_mae.STD).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def peer(folders):
  """What the peers compute in all cases, run once."""
  settings = []
  for name, (library, _, _) in LOADED.items():
    convert.write(library, folders / name, drawn(name))
    extra = {"extra": {"add_pooling_layer": False}} if name == "hf-vit" else {}
    settings.append(dict(kind="load", name=name, peer=library, folder=str(folders / name),
                         images="square" if "pixio" in name else "images", **extra))
  for i, (name, case) in enumerate(MADE.items()):
    settings.append(case | dict(kind="make", name=name, folder=str(folders / name), seed=i,
                                images="square" if "pixio" in name else "images"))
  convert.write("ijepa", folders / "facebook", drawn("timm-ijepa"))
  settings.append(dict(kind="wrap", file=str(folders / "facebook/model.safetensors"),
                       to=str(folders / "epoch.pth.tar")))
  return harness.run("encoders_oracle.py", env="siglip", settings=settings,
                     arrays={"images": normalised(pixels()), "square": normalised(pixels("pixio"))})


def forward(name, weights):
  """(params) -> what our model makes of the images: logits, or tokens with class tokens first."""
  image, x = dict(weights.model["image"]), pixels(name)
  grid, extra = ours.grid(image), {}
  image = {k: v for k, v in image.items() if k != "image_size"} | {"posemb_grid": grid}
  if weights.task == "classify":
    feature = weights.model["feature"]
    model = classifier.Classifier(**image, classes=7, feature=feature, final_norm=feature == "cls")
    return lambda params: model.apply({"params": params}, normalised(x))[0]
  if image["pool_type"] == "none":
    model = ijepa.Encoder(**image)
    return lambda params: model.apply({"params": params}, x)
  model = mae.MaskedAutoencoder(**image, **DECODER)
  for name, shape in ours.shapes("mae", {"image": image | DECODER}).items():
    if name not in weights.params:
      extra[name] = np.zeros(shape, np.float32)

  def tokens(params):
    whole = trees.nest(trees.flatten(params) | extra)
    y, _ = model.apply(
      {"params": whole}, x, method=lambda m, x: m.encode(m.embed_visible(x, None)))
    return y

  return tokens


@pytest.mark.parametrize("name", [*LOADED, *MADE])
def test_tokens_logits_and_gradients_agree(peer, folders, name):
  weights = convert.read(folders / name)
  assert weights.task == ("classify" if "cls" in name or "mean" in name else ours.ENCODER)
  params = trees.nest({n: weights.params[n] for n in weights.params})
  run = forward(name, weights)

  def loss(params):
    out = run(params)
    return (out * np.sin(np.arange(out.size)).reshape(out.shape)).sum(), out

  (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  want = peer[f"{name}/out"]
  assert out.shape == want.shape
  assert np.abs(out - want).max() < TOLERANCE * np.abs(want).max()
  theirs = under_their_names(name, weights, lazy.Tensors(trees.flatten(jax.device_get(grads))))
  compared = {n.removeprefix(f"{name}/grad/") for n in peer if n.startswith(f"{name}/grad/")}
  assert compared == set(theirs)
  largest = max(np.abs(peer[f"{name}/grad/{n}"]).max() for n in compared)
  for parameter in compared:
    far = np.abs(theirs[parameter] - peer[f"{name}/grad/{parameter}"]).max()
    assert far < TOLERANCE * largest, (parameter, far / largest)


def under_their_names(name, weights, grads):
  cls, classes = weights.model["image"]["pool_type"] == "tok", weights.task == "classify"
  if "timm" in name:
    rules = [*vit_tables.facebook(cls=cls), *encoders.head()]
  else:
    rules = vit_tables.transformers(theirs="vit." if classes else "", cls=cls)
    rules += tables.linear("head", "classifier")
  return tables.export(rules, ours.shapes(weights.task, weights.model), grads, format="test")


def test_what_facebook_s_code_saves_is_read_from_its_own_kind_of_file(peer, folders):
  """With the optimiser's state and DistributedDataParallel's names in it."""
  del peer
  want = files.read_tensors(folders / "facebook/model.safetensors")
  got = files.read_tensors(folders / "epoch.pth.tar")
  # The optimiser's tensors lie deeper and are not read.
  assert set(got) == set(want)
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])
  assert convert.detect(folders / "epoch.pth.tar") == "ijepa"
