"""PS3 equals ps3-torch: features, scores, choices, text, losses and every parameter's gradient.

Weights are drawn at random in PyTorch (`ps3_torch.py`), every tensor of them. Where scores tie,
which of the equal tokens is taken is arbitrary there, so features are compared on the tokens that
PyTorch took, and the choice itself by the scores of what was taken.

Tolerances are relative to the largest value of an array. Both sides compute in float32: sums in
another order, through six blocks and the cosines, differ by a few units of 6e-8.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import trees
from big_vision_ext.models import layouts, selection, selection_head
from big_vision_ext.objectives import contrastive
from big_vision_ext.objectives import selection as selection_loss
from tests.models import ps3_reference
from tests.oracles import harness, ps3_names, smooth_images

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

FEATURES = 1e-5
# Of each parameter by itself; the largest error measured is 7e-6.
GRADIENTS = 2e-5
SEEDS = (1, 2)
BATCH = 4
# Of which so many are encoded: the largest part of the time is PyTorch's, on its 1512-px branch.
ENCODED = 2

# timm's smallest ViT: width 64, 6 blocks, 2 heads, patch 16, mlp 192.
_BRANCH = dict(
  highres_selection_module_hidden_dim=32, highres_selection_module_out_dim=16,
  highres_selection_module_depth=2,
)  # fmt: skip
_VISION = dict(
  model_name="test_vit", hidden_size=64, pool="map", class_token=False, img_size=64,
  ps3_scales=[64, 128, 256], select_based_on_layer=[0, 2, 4, 5], max_select_num=40, **_BRANCH,
)  # fmt: skip
_TEXT = dict(
  output_dim=64, prompt_proj_dim=64, context_length=16, vocab_size=100, width=32, heads=4,
  layers=3, mlp_ratio=3.7362, no_causal_mask=True, proj_bias=True, pool_type="last",
  norm_kwargs={"eps": 1e-6},
)  # fmt: skip
_OURS = dict(
  width=64, depth=6, mlp_dim=192, num_heads=2, posemb_grid=(4, 4), patch_size=16,
  scales=(64, 128, 256), max_select_num=40, select_layers=(0, 2, 4, 5), selection_hidden=32,
  selection_out=16, selection_depth=2, scan=True,
)  # fmt: skip
_OUR_TEXT = dict(
  width=32, depth=3, mlp_dim=119, num_heads=4, vocab_size=100, text_len=16, act="gelu", scan=True
)
_CLIP = dict(
  mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711]
)  # fmt: skip

LAYOUTS = {
  "siglip": dict(
    vision=_VISION, text=_TEXT, image=_OURS, our_text=_OUR_TEXT, mean=[0.5] * 3, std=[0.5] * 3
  ),
  # C-RADIO: no final norm, a larger position table that is cropped, an adapter, SigLIP's head.
  # 5 x 5 cells do not divide the branch's 54 x 54, so that pooling windows overlap, as 24 do.
  "radio": dict(
    vision=_VISION | dict(
      img_size=352, ps3_scales=[80, 160, 320], radio=True, radio_adapter_mlp_version="v2",
      radio_adapter_mlp_input_dim=64, radio_adapter_mlp_hidden_dim=48,
      radio_adapter_mlp_output_dim=1152, radio_adapter_mlp_num_inner=3, final_norm=False),
    text=_TEXT | dict(output_dim=1152),
    image=_OURS | dict(
      scales=(80, 160, 320), posemb_grid=(22, 22), posemb_fit="crop", final_norm=False,
      adapter_hidden=48, adapter_depth=3, pool_width=1152, pool_heads=16, pool_mlp_dim=4304),
    our_text=_OUR_TEXT, **_CLIP),
  # As PS3-4K: four scales whose shares of the budget are fractions. SigLIP 2's text.
  "4k": dict(
    vision=_VISION | dict(ps3_scales=[64, 128, 256, 640], max_select_num=100),
    text=_TEXT | dict(act_kwargs={"approximate": "tanh"}),
    image=_OURS | dict(scales=(64, 128, 256, 640), max_select_num=100),
    our_text=_OUR_TEXT | dict(act="gelu_tanh"), mean=[0.5] * 3, std=[0.5] * 3),
}  # fmt: skip

# name -> layout, image, ps3-torch's arguments, ours.
_T, _G = dict(topdown=True), dict(topdown=True, gt=True)
ENCODE = [
  ("bottom-up, two looks", "siglip", (256, 256), dict(num_look_close=2), dict(num_looks=2)),
  ("top-down", "siglip", (256, 256), _T | dict(num_look_close=1), dict(num_looks=1)),
  ("forced", "siglip", (256, 256), _G | dict(num_look_close=2), dict(num_looks=2)),
  ("all", "siglip", (256, 256), dict(num_look_close="all"), dict(num_looks="all")),
  ("17 tokens", "siglip", (256, 256), dict(num_token_look_close=17), dict(num_tokens=17)),
  ("70 tokens", "siglip", (256, 256), _T | dict(num_token_look_close=70), dict(num_tokens=70)),
  ("one scale", "siglip", (256, 256), dict(num_look_close=1, only_select_first_n_scale=1),
   dict(num_looks=1, only_first_n_scales=1)),
  ("all of one scale", "siglip", (256, 256),
   dict(num_look_close="all", only_select_first_n_scale=1),
   dict(num_looks="all", only_first_n_scales=1)),
  ("low only", "siglip", (256, 256), dict(num_look_close=0), dict(num_looks=0)),
  ("bottom-up, two looks", "siglip", (256, 160), dict(num_look_close=2), dict(num_looks=2)),
  ("forced", "siglip", (128, 256), _G | dict(num_look_close=2), dict(num_looks=2)),
  ("top-down", "siglip", (300, 200), _T | dict(num_look_close=1), dict(num_looks=1)),
  ("top-down, two looks", "radio", (320, 320), _T | dict(num_look_close=2), dict(num_looks=2)),
  ("bottom-up", "radio", (200, 320), dict(num_look_close=1), dict(num_looks=1)),
  ("top-down", "4k", (640, 640), _T | dict(num_look_close=1), dict(num_looks=1)),
  ("170 tokens", "4k", (640, 640), _T | dict(num_token_look_close=170), dict(num_tokens=170)),
]  # fmt: skip
# These another size or layout has too.
_AGAIN = ("siglip-256x256-bottom-up, two looks", "siglip-256x256-top-down", "siglip-256x256-forced",
          "siglip-256x256")


def _cases(cases, ids):
  return [pytest.param(*case, id=name, marks=pytest.mark.thorough if name in _AGAIN else ())
          for case, name in zip(cases, ids)]


_ENCODE = _cases(ENCODE, [f"{layout}-{h}x{w}-{name}" for name, layout, (h, w), _, _ in ENCODE])
TRAIN = [("siglip", (256, 256)), ("siglip", (256, 160)), ("radio", (320, 320)), ("4k", (640, 640))]
_TRAIN = _cases(TRAIN, [f"{layout}-{h}x{w}" for layout, (h, w) in TRAIN])


def _images_name(hw):
  return f"{hw[0]}x{hw[1]}"


@functools.lru_cache
def _inputs(layout, hw):
  """Images, prompts, boxes and texts of one layout and size."""
  rng = np.random.default_rng([*hw, len(layout)])
  (h, w), n = hw, BATCH
  corner = rng.uniform(0, 0.7, (n, 2)) * (w, h)
  far = np.minimum(corner + rng.uniform(0.1, 0.5, (n, 2)) * (w, h), (w, h))
  box = np.concatenate([corner, far], 1).astype(np.float32)
  # A whole image, whose forced tokens exceed any budget, and one pixel.
  box[1], box[2] = (0, 0, w, h), (w / 2, h / 2, w / 2, h / 2)
  return {
    "image": smooth_images.draw(rng, n, hw),
    "prompt": rng.standard_normal((n, 64)).astype(np.float32),
    "box": box,
    "gt": ps3_reference.paint(box, hw).astype(np.float32),
    "ids": rng.integers(0, 100, (n, 16)),
    "is_global": np.array([False, True, False, False]),
  }


@pytest.fixture(scope="module")
def oracle():
  arrays, settings = {}, {}
  for name, layout in LAYOUTS.items():
    jobs = [
      dict(kind="encode", name=case, images=_images_name(hw), kwargs=kwargs, count=ENCODED)
      for case, of, hw, kwargs, _ in ENCODE
      if of == name
    ]
    sizes = [hw for of, hw in TRAIN if of == name]
    for kind in ("train", "text", "low"):
      jobs += [dict(kind=kind, name=kind, images=_images_name(hw), count=BATCH) for hw in sizes]
    for hw in {hw for _, of, hw, _, _ in ENCODE if of == name} | set(sizes):
      here = f"{name}/{_images_name(hw)}"
      arrays |= {f"{here}/{key}": value for key, value in _inputs(name, hw).items()}
    used = {key: layout[key] for key in ("vision", "text", "mean", "std")}
    settings[name] = used | dict(seeds=SEEDS, jobs=jobs)
  return harness.run("ps3_torch.py", env="ps3", arrays=arrays, settings=settings)


def _under(arrays, prefix):
  return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def _numbered(arrays, prefix):
  """The list of what is called `prefix/0`, `prefix/1`, ..."""
  return [arrays[f"{prefix}/{i}"] for i in range(sum(k.startswith(f"{prefix}/") for k in arrays))]


def _looks(arrays, scales):
  """Maps [look][scale], (b, y, x)."""
  maps = [_under(arrays, "looks/")[k] for k in sorted(_under(arrays, "looks/"), key=_number)]
  return [maps[i : i + scales] for i in range(0, len(maps), scales)]


def _number(key):
  return tuple(map(int, key.split("/")))


@functools.lru_cache
def _task(layout, scan=True):
  spec = LAYOUTS[layout]
  image = spec["image"] | dict(mean=tuple(spec["mean"]), std=tuple(spec["std"]), scan=scan)
  return tasks.make("ps3", dict(image=image, text=spec["our_text"] | dict(scan=scan)))


def _tree(weights, layout):
  image = LAYOUTS[layout]["image"]
  tree = ps3_names.tree(
    weights, heads=image["num_heads"], pool_heads=image.get("pool_heads", image["num_heads"]),
    text_heads=4)  # fmt: skip
  return layouts.loop_to_scan(tree)


def _params(oracle, layout, seed):
  return _tree(_under(oracle, f"{layout}/{seed}/weights/"), layout)


# Compiling takes the time here, so programs are shared between seeds.
@functools.lru_cache
def _jit(function, *static):
  return jax.jit(functools.partial(function, *static))


def _encode(layout, static, params, image, arrays):
  model = _task(layout).vision
  return model.apply({"params": params}, image, method="encode_image", **arrays, **dict(static))


def _error(ours, theirs):
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def _close(ours, theirs, tolerance=FEATURES):
  assert _error(ours, theirs) < tolerance


def _indices(maps):
  """Ascending raster indices (b, t) of a (b, y, x) map of equal sums."""
  flat = maps.reshape(len(maps), -1)
  return np.stack([np.flatnonzero(row) for row in flat]).astype(np.int32)


def _same_scores_taken(prob, index, maps):
  """What we took has the scores of what PyTorch took, token for token when sorted."""
  prob = prob.reshape(len(prob), -1)
  ours = np.sort(np.take_along_axis(prob, np.asarray(index), 1))
  theirs = np.sort(np.take_along_axis(prob, _indices(maps), 1))
  np.testing.assert_allclose(ours, theirs, rtol=FEATURES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case, layout, hw, torch_kwargs, kwargs", _ENCODE)
def test_encoding_equals_ps3_torch(oracle, case, layout, hw, torch_kwargs, kwargs, seed):
  given = {key: value[:ENCODED] for key, value in _inputs(layout, hw).items()}
  theirs = _under(oracle, f"{layout}/{seed}/{_images_name(hw)}/{case}/")
  model = _task(layout).vision
  looks = _looks(theirs, len(model.scales) - 1)
  plan = model.plan(hw, **kwargs)
  assert [tuple(int(m[0].sum()) for m in look) for look in looks] == plan

  arrays = {"prompt": given["prompt"]} if "topdown" in torch_kwargs else {}
  if plan:
    # Tokens of the first look score highest: PyTorch's own looks, one after the other.
    arrays["scores"] = [
      sum((len(looks) - i) * m for i, m in enumerate(maps)).astype(np.float32)
      for maps in zip(*looks)
    ]
  static = tuple((kwargs | dict(return_hidden=model.depth)).items())
  params = _params(oracle, layout, seed)["img"]
  ours = _jit(_encode, layout, static)(params, given["image"], arrays)

  _close(ours["last_hidden"], theirs["last"])
  hidden = _numbered(theirs, "hidden")
  assert len(ours["hidden"]) == len(hidden) == model.depth
  for x, y in zip(ours["hidden"], hidden):
    _close(x, y)
  for mine, taken in zip(ours["looks"], looks):
    for index, maps in zip(mine, taken):
      np.testing.assert_array_equal(index, _indices(maps))

  grids = model.grids(hw)
  box = jnp.asarray(given["box"]) if "gt" in torch_kwargs else None
  maps, forced = model._choice_maps(ours["score"], None, box, hw)
  chosen_by = selection.force(maps, forced)
  prob = _numbered(theirs, "prob")
  for x, y in zip(chosen_by, prob):
    _close(x, y)
  own = selection.select(maps, plan, cells=model.cells, forced=forced)
  for mine, taken in zip(own, looks):
    for index, map_, p in zip(mine, taken, prob):
      _same_scores_taken(p, index, map_)
  assert [p.shape[1:] for p in prob] == list(grids)


@pytest.mark.parametrize("layout, hw", _TRAIN)
def test_text_and_low_resolution_vectors_equal_ps3_torch(oracle, layout, hw):
  given, task = _inputs(layout, hw), _task(layout)
  read = jax.jit(lambda p, ids: task._read(p, {"text": ids}))
  low = jax.jit(lambda p, x: task.vision.apply({"params": p}, x, method="low")["pooled"])
  for seed in SEEDS:
    params = _params(oracle, layout, seed)
    theirs = _under(oracle, f"{layout}/{seed}/{_images_name(hw)}/")
    embedding, prompt = read(params, given["ids"])
    _close(embedding, theirs["text/embedding"])
    _close(prompt, theirs["text/prompt"])
    _close(low(params["img"], given["image"]), theirs["low/pooled"])


def _forward(layout, params, batch, index):
  """The training pass on the tokens `index`: the pooled vector and what comes with it."""
  prompt = _task(layout)._read(params, batch)[1]
  with mock.patch.object(selection, "take", lambda *_, **__: [index]):
    return _task(layout).vision.apply(
      {"params": params["img"]}, batch["image"], prompt, batch["box"], batch["is_global"]
    )


def _loss(layout, hw, params, batch, index):
  """The task's loss on the tokens `index`; its parts put together here for what it refuses."""
  task = _task(layout)
  if hw == (task.image_size, task.image_size):
    with mock.patch.object(selection, "take", lambda *_, **__: [index]):
      loss, metrics = task.loss(params, batch, None, True)
    return loss, (metrics["loss_contrastive"], metrics["loss_selection"])
  pooled, out = _forward(layout, params, batch, index)
  zimg, ztxt = selection_head.l2_normalize(pooled), task._read(params, batch)[0]
  contrast, _ = contrastive.sigmoid_loss(zimg, ztxt, jnp.exp(params["t"])[0], params["b"][0])
  where, _ = selection_loss.selection_loss(
    out["topdown"]["score"], out["bottomup"]["score"], box=batch["box"],
    is_global=batch["is_global"], image_hw=hw, grids=task.vision.grids(hw))  # fmt: skip
  return contrast + where, (contrast, where)


def _gradient(layout, hw, params, batch, index):
  return jax.value_and_grad(functools.partial(_loss, layout, hw), has_aux=True)(
    params, batch, index
  )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("layout, hw", _TRAIN)
def test_training_equals_ps3_torch(oracle, layout, hw, seed):
  given = _inputs(layout, hw)
  batch = {"text": given["ids"]} | {k: given[k] for k in ("image", "box", "is_global")}
  theirs = _under(oracle, f"{layout}/{seed}/{_images_name(hw)}/train/")
  params = _params(oracle, layout, seed)
  model = _task(layout).vision
  (look,) = _looks(theirs, len(model.scales) - 1)
  index = [_indices(maps) for maps in look]
  assert [tuple(x.shape[1] for x in index)] == model.plan(hw, num_looks=1)

  pooled, out = _jit(_forward, layout)(params, batch, index)
  _close(pooled, theirs["pooled"])
  for ours, name in (
    (out["topdown"]["prob"], "topdown"),
    (out["bottomup"]["prob"], "bottomup"),
    (out["forced_prob"], "forced"),
  ):
    for x, y in zip(ours, _numbered(theirs, name), strict=True):
      _close(x, y)
  maps, forced = model._choice_maps(out["topdown"]["score"], None, batch["box"], hw)
  (own,) = selection.select(maps, model.plan(hw, num_looks=1), cells=model.cells, forced=forced)
  for mine, taken, prob in zip(own, look, _numbered(theirs, "forced")):
    _same_scores_taken(prob, mine, taken)

  (loss, parts), grads = _jit(_gradient, layout, hw)(params, batch, index)
  np.testing.assert_allclose(parts[0], theirs["contrastive"], rtol=FEATURES)
  np.testing.assert_allclose(parts[1], theirs["selection"], rtol=FEATURES)
  np.testing.assert_allclose(loss, theirs["contrastive"] + theirs["selection"], rtol=FEATURES)
  wanted = _tree(_under(theirs, "grad/"), layout)
  assert jax.tree.structure(grads) == jax.tree.structure(wanted)
  mine, largest = layouts.scan_to_loop(grads), max(map(np.max, jax.tree.leaves(wanted)))
  wanted = trees.flatten(layouts.scan_to_loop(wanted))
  for name, x in trees.flatten(mine).items():
    if name.endswith("key/bias"):
      # A bias of all keys cancels in softmax: its gradient is zero, and both give rounding errors.
      assert max(np.abs(x).max(), np.abs(wanted[name]).max()) < 1e-7 * largest, name
    else:
      assert _error(x, wanted[name]) < GRADIENTS, name
