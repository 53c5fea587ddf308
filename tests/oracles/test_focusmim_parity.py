"""FocusMIM here and in PyTorch: images, latents, loss, every gradient, initial values, Adam.

The peer is the published network, built from its description. Files that we write are loaded there
strictly, and files that PyTorch writes are read here. Every parameter is random, images are not
square.
"""

import jax
import numpy as np
import optax
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.convert import focusmim, lazy, ours
from big_vision_ext.core import optimizers, sharding, trees
from big_vision_ext.core.config import Optim
from big_vision_ext.objectives import mim
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value; float32 on both sides, sums of up to 1,152 numbers through
# 36 convolutions.
CLOSE = 1e-5
MODEL = {"image": dict(widths=(32, 64, 128), depth=3, image_size=96)}
SIZES = {0: (96, 96), 1: (40, 64), 2: (64, 24)}
CASES = {f"{kind}-{seed}": (kind, seed) for kind in ("load", "make") for seed in SIZES}
ADAM = dict(lr=1e-3, decay=1e-2, steps=3)


def inputs(seed):
  rng = np.random.default_rng(20 + seed)
  image = rng.random((2, *SIZES[seed], 3), np.float32)
  # Unequal numbers of hidden pixels, some of soft weight.
  mask = (rng.random(image.shape[:3]) < [[[0.3]], [[0.8]]]).astype(np.float32)
  return image, mask


def drawn(seed):
  rng = np.random.default_rng(seed)
  params = {n: (rng.standard_normal(s) / max(np.prod(s[:-1]), 25) ** 0.5).astype(np.float32)
            for n, s in ours.shapes("focusmim", MODEL).items()}
  return convert.Weights(lazy.Tensors(params), "focusmim", MODEL, {"image_size": 96})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("focusmim")


@pytest.fixture(scope="module")
def peer(folder):
  """What the peer computes in all cases, run once."""
  arrays, settings = {}, [dict(kind="init", name="init")]
  for name, (kind, seed) in CASES.items():
    image, mask = inputs(seed)
    arrays |= {f"images{seed}": image, f"mask{seed}": mask}
    case = dict(kind="run", name=name, images=f"images{seed}", mask=f"mask{seed}")
    if kind == "load":
      convert.write("focusmim", folder / name, drawn(seed))
      case["load"] = str(folder / name / "model.safetensors")
    else:
      case |= dict(seed=seed, save=str(folder / f"{name}.pt"))
    settings.append(case)
  adam = dict(kind="adam", name="adam", images="images1", mask="mask1",
              load=str(folder / "load-1" / "model.safetensors"), dtype="float64", **ADAM)
  settings.append(adam)
  return harness.run("focusmim_oracle.py", env="siglip", arrays=arrays, settings=settings)


@pytest.fixture(scope="module")
def mine():
  """Compiled (params, image, mask) -> loss, (image, latent), gradients; hidden pixels are black."""
  vision = tasks.make("focusmim", MODEL).vision

  def forward(params, image, mask):
    pred, out = vision.apply({"params": params}, image * (1 - mask[..., None]))
    return mim.pixel_mse(pred, image, mask), (pred, out["latent"])

  return jax.jit(jax.value_and_grad(forward, has_aux=True))


def theirs_of(tree):
  return focusmim.export(lazy.Tensors(trees.flatten(jax.device_get(tree))), MODEL)


@pytest.mark.parametrize("name", CASES)
def test_images_latents_loss_and_gradients_agree(peer, mine, folder, name):
  kind, seed = CASES[name]
  weights = convert.read(folder / (name if kind == "load" else f"{name}.pt"))
  assert weights.task == "focusmim"
  params = trees.nest({n: weights.params[n] for n in weights.params})
  (loss, (image, latent)), grads = mine(params, *inputs(seed))
  get = lambda key: peer[f"{name}/{key}"]
  assert get("image").std() > 0.01 and np.mean(get("latent") > 0) > 0.05
  for got, want in ((image, get("image")), (latent, get("latent"))):
    assert np.abs(got - want).max() < CLOSE * np.abs(want).max()
  assert abs(loss - get("loss")) < CLOSE * get("loss")
  grads = theirs_of(grads)
  compared = {n.removeprefix(f"{name}/grad/") for n in peer if n.startswith(f"{name}/grad/")}
  idle = set(grads) - compared
  # The skips that are registered and not used.
  assert len(idle) == 24 and all("match_dim" in n for n in idle)
  largest = max(np.abs(get(f"grad/{n}")).max() for n in compared)
  for parameter in compared:
    difference = np.abs(grads[parameter] - get(f"grad/{parameter}")).max()
    assert difference < CLOSE * largest, parameter


def test_initial_values_have_pytorchs_bounds(peer):
  task = tasks.make("focusmim", MODEL)
  batch = {"image": np.zeros((1, 96, 96, 3), np.uint8)}
  # Not jitted: one program with all its draws takes a minute to compile.
  params = theirs_of(sharding.unbox(task.init(jax.random.key(0), batch)))
  checked = 0
  for name in params:
    want, got = peer[f"init/{name}"], params[name]
    assert got.shape == want.shape
    if want.size < 500 or not got.any():
      continue
    # Extremes of at least 500 uniform draws lie within 2 % of their bound.
    assert np.abs(got).max() == pytest.approx(np.abs(want).max(), rel=0.02), name
    assert got.std() == pytest.approx(want.std(), rel=0.1), name
    checked += 1
  assert checked > 30


def test_adam_with_decay_in_the_gradient_takes_the_same_steps(peer, mine):
  """The peer in float64; decay a million times the paper's, to be seen."""
  weights = drawn(1)
  params = trees.nest({n: weights.params[n] for n in weights.params})
  begun = theirs_of(params)
  # An epsilon of 1e-8 makes whole steps of gradients that are rounding only; there are few.
  tx = optimizers.make(Optim(name="adam", weight_decay=ADAM["decay"], wd_mults=((".*", 1.0),),
                             clip_norm=None), ADAM["lr"], params)
  state, step = tx.init(params), jax.jit(tx.update)
  for _ in range(ADAM["steps"]):
    _, grads = mine(params, *inputs(1))
    updates, state = step(grads, state, params)
    params = optax.apply_updates(params, updates)
  got = theirs_of(params)
  for name in got:
    want = peer[f"adam/after/{name}"]
    if not np.any(begun[name]):
      continue
    moved = np.abs(want - begun[name])
    assert moved.mean() > 1e-3, name
    off = np.abs(got[name] - want)
    # Steps are of the size of lr whatever the gradient: those of gradients next to nothing differ.
    assert np.quantile(off, 0.99) < 1e-3 * 3 * ADAM["lr"] and off.max() < 3 * ADAM["lr"], name
