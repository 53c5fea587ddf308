"""Fine-tuning here and in timm: logits, loss, every gradient, and each operation of RandAugment.

And each change of colours in torchvision.
"""

import jax
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import trees
from big_vision_ext.objectives import mixing
from input_pipeline import jitter, randaugment
from tests.models import tiny_vit
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value, float32 on both sides, sums of at most 192 numbers through
# three blocks.
TOLERANCE = 1e-5
IMAGE = dict(width=48, depth=3, mlp_dim=96, num_heads=3, patch_size=8, image_size=48)
THEIRS = dict(img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2.0,
              num_classes=7, global_pool="avg", fc_norm=True)
OPERATIONS = [
  ("AutoContrast", None, "auto_contrast"), ("Equalize", None, "equalize"),
  ("Invert", None, "invert"), ("Rotate", 26.5, "rotate"), ("Rotate", -13.0, "rotate"),
  ("PosterizeIncreasing", 1, "posterize"),
  ("SolarizeIncreasing", 26, "solarize"), ("SolarizeAdd", 99, "solarize_add"),
  ("ColorIncreasing", 1.8, "color"), ("ContrastIncreasing", 0.2, "contrast"),
  ("BrightnessIncreasing", 1.7, "brightness"), ("SharpnessIncreasing", 0.1, "sharpness"),
  ("ShearX", 0.27, "shear_x"), ("ShearY", -0.27, "shear_y"),
  ("TranslateXRel", 0.4, "translate_x"), ("TranslateYRel", -0.31, "translate_y")]

JITTER = [("brightness", 0.3), ("brightness", 1.8), ("contrast", 0.4), ("contrast", 1.7),
          ("saturation", 0.0), ("saturation", 1.6), ("hue", -0.2), ("hue", 0.5), ("hue", 0.07)]


def timm_names(params):
  """Our parameters under timm's names, by hand: kernels (out, in), queries, keys, values in one."""
  d = IMAGE["width"]
  out = {
    "cls_token": params["cls"],
    "pos_embed": np.concatenate([params["cls_pos_embedding"], params["pos_embedding"]], axis=1),
    "patch_embed.proj.weight": params["embedding"]["kernel"].transpose(3, 2, 0, 1),
    "patch_embed.proj.bias": params["embedding"]["bias"],
    "head.weight": params["head"]["kernel"].T, "head.bias": params["head"]["bias"],
    "fc_norm.weight": params["fc_norm"]["scale"], "fc_norm.bias": params["fc_norm"]["bias"],
  }
  for i in range(IMAGE["depth"]):
    block = params["Transformer"][f"encoderblock_{i}"]
    mha, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
    qkv = [mha[name] for name in ("query", "key", "value")]
    mine = {
      "attn.qkv.weight": np.concatenate([p["kernel"].reshape(d, d).T for p in qkv]),
      "attn.qkv.bias": np.concatenate([p["bias"].reshape(d) for p in qkv]),
      "attn.proj.weight": mha["out"]["kernel"].reshape(d, d).T,
      "attn.proj.bias": mha["out"]["bias"],
    }
    for n in (0, 1):
      mine[f"norm{n + 1}.weight"] = block[f"LayerNorm_{n}"]["scale"]
      mine[f"norm{n + 1}.bias"] = block[f"LayerNorm_{n}"]["bias"]
      mine[f"mlp.fc{n + 1}.weight"] = mlp[f"Dense_{n}"]["kernel"].T
      mine[f"mlp.fc{n + 1}.bias"] = mlp[f"Dense_{n}"]["bias"]
    out |= {f"blocks.{i}.{name}": x for name, x in mine.items()}
  return {name: np.ascontiguousarray(x) for name, x in out.items()}


@pytest.fixture(scope="module")
def case():
  task = tasks.make("classify", dict(image=IMAGE, num_classes=7))
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (4, 48, 48, 3), np.uint8),
           "label": np.zeros(4, np.int32)}
  params = tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), batch))
  return task, params, batch, rng.dirichlet(np.ones(7), 4).astype(np.float32)


PICTURE = np.random.default_rng(5).integers(10, 240, (40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def peer(case):
  task, params, batch, target = case
  arrays = {f"model/{n}": x for n, x in timm_names(params).items()}
  arrays |= {"images": np.asarray(task._normalise(batch["image"])), "target": target,
             "picture": PICTURE}
  return harness.run("classify_oracle.py", env="siglip", arrays=arrays, settings=dict(
    model=THEIRS, operations=OPERATIONS, fill=randaugment.FILL, jitter=JITTER))


def test_logits_loss_and_gradients_agree(case, peer):
  task, params, batch, target = case

  def loss(params):
    logits = task.logits(params, batch)
    return mixing.soft_cross_entropy(logits, target), logits

  (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  assert np.abs(logits - peer["logits"]).max() < TOLERANCE * np.abs(peer["logits"]).max()
  assert abs(value - peer["loss"]) < TOLERANCE * peer["loss"]
  mine = timm_names(jax.device_get(grads))
  assert {f"grad/{n}" for n in mine} == {n for n in peer if n.startswith("grad/")}
  largest = max(np.abs(peer[f"grad/{n}"]).max() for n in mine)
  for name, x in mine.items():
    assert np.abs(x - peer[f"grad/{name}"]).max() < TOLERANCE * largest, name
  assert len(mine) == 8 + 12 * 3 and len(trees.flatten(params)) == 9 + 16 * 3


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=[o[0] for o in OPERATIONS])
def test_an_operation_of_randaugment_gives_timm_s_pixels(peer, number):
  _, argument, name = OPERATIONS[number]
  # Pillow is of the same version on both sides.
  np.testing.assert_array_equal(
    randaugment.apply(name, PICTURE, argument), peer[f"augmented/{number}"])


@pytest.mark.parametrize("number", range(len(JITTER)), ids=[f"{n}{f}" for n, f in JITTER])
def test_a_change_of_colours_gives_torchvision_s_pixels(peer, number):
  x = PICTURE.astype(np.float32) / np.float32(255)
  # float32 on both sides, the hue by another formula.
  np.testing.assert_allclose(
    jitter.change(JITTER[number][0], x, JITTER[number][1]), peer[f"jittered/{number}"], atol=1e-5)
