"""Restoration networks here and in PyTorch: pictures and the gradient of every parameter.

The peers are the published networks, built from their descriptions, with the names of their files.
Files that we write are loaded there strictly, and files that PyTorch writes are read here. Every
parameter is random, pictures are not square and lie across several windows.
"""

import functools
import json

import jax
import numpy as np
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.convert import lazy, ours, restoration_nets, tables
from big_vision_ext.core import trees
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over the largest value of the same array; float32 here, float64 there.
CLOSE = 1e-5
# Of a temperature: one number a head, a sum over all pairs of channels whose terms nearly cancel.
CANCELLING = 1e-4
_SWIN = dict(width=12, depth=2, blocks=2, heads=3, window=4, mlp_ratio=2.0)
# name -> (our network, our scale, our fields, the peer's sizes, sides of pictures)
NETS = {
  "msrresnet": ("msrresnet", 1, dict(width=8, depth=2), dict(scale=1), (10, 15)),
  "msrresnet-x3": ("msrresnet", 3, dict(width=8, depth=1), dict(scale=3), (7, 5)),
  "msrresnet-x4": ("msrresnet", 4, dict(width=8, depth=2), dict(scale=4), (6, 9)),
  "edsr-x4": ("edsr", 4, dict(width=8, depth=2, mean=[0.4488, 0.4371, 0.4040], img_range=255.0,
                              global_skip=False), dict(scale=4), (6, 9)),
  "swinir-x2": ("swinir", 2, _SWIN | dict(tail_width=10), dict(
    scale=2, tail="pixelshuffle"), (16, 12)),
  "swinir_light": ("swinir_light", 1, _SWIN, dict(scale=1, tail="pixelshuffle"), (12, 20)),
  "swinir_light-x3": ("swinir_light", 3, _SWIN, dict(scale=3, tail="pixelshuffledirect"), (8, 12)),
  "swinir-denoise": ("swinir", 1, _SWIN | dict(tail="denoise"), dict(scale=1, tail="denoise"),
                     (12, 8)),
  "restormer": ("restormer", 1, dict(width=8, depth=[1, 2, 1, 1], refinement=1, heads=[1, 2, 4, 8],
                                     mlp_ratio=2.66, norm_bias=True), {}, (24, 16)),
  "restormer-free": ("restormer", 1, dict(width=8, depth=[1, 1, 1, 1], refinement=1,
                                          heads=[1, 2, 2, 4], mlp_ratio=2.0, norm_bias=False), {},
                     (16, 24)),
}
# Seed 0: PyTorch draws and saves; seed 1: we draw and write.
CASES = [(name, seed) for name in NETS for seed in (0, 1)]


def net_of(name):
  kind, scale, fields, *_ = NETS[name]
  return {"name": kind, "scale": scale, "fields": fields}


def inputs(name, seed):
  _, scale, _, _, (h, w) = NETS[name]
  rng = np.random.default_rng(40 + seed)
  image = rng.random((2, h, w, 3), np.float32)
  return image, rng.standard_normal((2, h * scale, w * scale, 3)).astype(np.float32)


def drawn(name, seed):
  rng = np.random.default_rng(seed)
  params = {}
  for n, shape in ours.shapes("restore", {"net": net_of(name)}).items():
    centre = n.endswith(("scale", "temperature"))
    fan = np.prod(shape[:-1]) if len(shape) > 1 and "offset" not in n else 25
    params[n] = (centre + 0.8 * rng.standard_normal(shape) / fan**0.5).astype(np.float32)
  return convert.Weights(lazy.Tensors(params), "restore", {"net": net_of(name)},
                         {"image_size": 16})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("restoration")


@pytest.fixture(scope="module")
def peer(folder):
  """What the peers compute in all cases, run once."""
  arrays, settings = {}, []
  for name, seed in CASES:
    case = f"{name}/{seed}"
    image, weights = inputs(name, seed)
    arrays |= {f"{case}/x": image, f"{case}/w": weights}
    fields, sizes = NETS[name][2:4]
    kind = NETS[name][0].removesuffix("_light")
    sizes = {k: v for k, v in fields.items() if k not in ("global_skip", "tail")} | sizes
    one = dict(name=case, kind=kind, sizes=sizes, images=f"{case}/x", weights=f"{case}/w")
    if seed:
      convert.write("restoration", folder / name, drawn(name, seed))
      one["load"] = str(folder / name / "model.pth")
    else:
      one |= dict(seed=seed, save=str(folder / f"{name}.pth"))
    settings.append(one)
  return harness.run("restoration_oracle.py", env="siglip", arrays=arrays, settings=settings)


@functools.cache
def compiled(net):
  """(params, image, weights) -> (loss, picture), gradients; of a `config.model.net` in JSON."""
  net = json.loads(net)
  task = tasks.make("restore", {"net": net, "image_size": 48 * net["scale"]})

  def run(params, image, weights):
    y = task.restore(params, {"image": image})
    return (y * weights).sum(), y

  return jax.jit(jax.value_and_grad(run, has_aux=True))


@pytest.mark.parametrize("name, seed", CASES)
def test_pictures_and_gradients_agree(peer, folder, name, seed):
  found = convert.read(folder / name if seed else folder / f"{name}.pth")
  net = found.model["net"]
  params = trees.nest({n: found.params[n] for n in found.params})
  (_, got), grads = compiled(json.dumps(net, sort_keys=True))(params, *inputs(name, seed))
  want = peer[f"{name}/{seed}/image"]
  assert want.std() > 0.1 and want.shape == got.shape
  assert np.abs(got - want).max() < CLOSE * np.abs(want).max()
  grads = tables.export(restoration_nets.rules(net), ours.shapes("restore", {"net": net}),
                        lazy.Tensors(trees.flatten(jax.device_get(grads))), format="restoration")
  prefix = f"{name}/{seed}/grad/"
  theirs = {n.removeprefix(prefix): g for n, g in peer.items() if n.startswith(prefix)}
  assert set(grads) == set(theirs)
  for parameter, want in theirs.items():
    assert np.abs(want).max() > 0, parameter
    difference = np.abs(grads[parameter] - want).max() / np.abs(want).max()
    close = CANCELLING if parameter.endswith("temperature") else CLOSE
    assert difference < close, (parameter, difference)
