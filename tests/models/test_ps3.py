"""PS3's vision model: the tree, NumPy's numbers, and what must not depend on what."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import layouts, ps3, resample
from tests.models import ps3_reference, tiny_vit, vit_reference

TINY = dict(
  width=24, depth=2, mlp_dim=40, num_heads=3, posemb_grid=(4, 4), patch_size=4,
  scales=(16, 32, 64), max_select_num=40, select_layers=(0, 1), selection_size=32,
  selection_kernel=4, selection_hidden=16, selection_out=8, selection_depth=1,
)  # fmt: skip
# The configuration of ps3-torch on timm's test_vit, for which reference counts are known.
ORACLE = dict(
  width=64, depth=6, mlp_dim=192, num_heads=2, posemb_grid=(4, 4), patch_size=16,
  scales=(64, 128, 256), max_select_num=40, select_layers=(0, 2, 4, 5), selection_hidden=32,
  selection_out=16, selection_depth=2,
)  # fmt: skip
# C-RADIO: no final norm, positions cropped out of a larger table, an adapter to another head.
RADIO = dict(
  final_norm=False, posemb_grid=(18, 17), posemb_fit="crop", adapter_hidden=20, adapter_depth=2,
  pool_width=32, pool_heads=4, pool_mlp_dim=28,
)  # fmt: skip
# So400m at patch 14 and 4K, as published.
PS3_4K = dict(
  width=1152, depth=27, mlp_dim=4304, num_heads=16, posemb_grid=(27, 27), patch_size=14,
  scales=(378, 756, 1512, 3780),
)  # fmt: skip


def randomize(params, seed):
  """No parameter stays at zero or one, where a mistake would not show."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    scale = 1 / np.sqrt(np.prod(x.shape[:-1])) if path[-1].key == "kernel" else 0.3
    mean = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(mean + scale * rng.standard_normal(x.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(params))


def make(seed=0, hw=(64, 64), b=2, **kw):
  model = ps3.PS3Vision(**TINY | kw)
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (b, *hw, 3), np.uint8)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  prompt = rng.standard_normal((b, model.width)).astype(np.float32)
  return model, randomize(shapes, seed), image, prompt


# One program per model, method and shapes, shared between tests: compiling is what takes time here.
@functools.lru_cache
def program(model, method, static):
  def f(params, args, kwargs):
    return model.apply({"params": params}, *args, **kwargs, method=method, **dict(static))

  return jax.jit(f)


def run(model, params, method, *args, **kwargs):
  static = {k: v for k, v in kwargs.items() if isinstance(v, (int, str))}
  arrays = {k: v for k, v in kwargs.items() if k not in static}
  return program(model, method, tuple(static.items()))(params, args, arrays)


def encode(model, params, image, prompt, num_looks=2, **kwargs):
  kwargs = dict(num_looks=num_looks, return_hidden=2) | kwargs
  return run(model, params, "encode_image", image, prompt, **kwargs)


def numpy_reference(model, params):
  return ps3_reference.Reference(jax.tree.map(np.float64, params), model)


def close(ours, theirs, tol=2e-5):
  """float32 against float64: rounding through a few layers, relative to the largest value."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() < tol * np.abs(theirs).max()


def n_params(**kw):
  model = ps3.PS3Vision(**kw)
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8)
  return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])


def test_tree_has_the_published_parameters():
  assert sum(x.size for x in jax.tree.leaves(n_params(**ORACLE))) == 560_208
  tree = n_params(**PS3_4K, scan=True)

  def count(*names):
    return sum(x.size for name in names for x in jax.tree.leaves(tree[name]))

  # Millions, as listed by the release: trunk, selection features, residuals, branch, its prompt.
  assert count("embedding", "pos_embedding", "Transformer", "MAPHead_0") == 428_225_600
  assert round(count("selection_feature_proj") / 1e6, 1) == 37.2
  assert count(*(f"pos_emb_residual_{i}" for i in range(3))) == (2916 + 11664 + 72900) * 1152
  assert round(count("highres_selection") / 1e6, 2) == 7.85
  assert round(count("prompt_proj_for_highres") / 1e6, 1) == 1.8
  assert round(sum(x.size for x in jax.tree.leaves(tree)) / 1e6, 1) == 575.8
  assert tree["selection_feature_proj"]["fc2"]["kernel"].shape == (4608, 3 * 1152)
  assert tree["prompt_proj_for_highres"]["kernel"].shape == (1152, 3 * 512)


@pytest.mark.parametrize(
  "kw, tokens, first",
  [
    (dict(num_looks=1), 56, (8, 32)),
    (dict(num_looks=2), 96, (8, 32)),
    (dict(num_looks="all"), 336, (8, 32)),
    (dict(num_tokens=17), 33, (3, 14)),
    (dict(num_tokens=70), 86, (8, 32)),
    (dict(num_looks=1, only_first_n_scales=1), 56, (40, 0)),
    (dict(num_looks=0), 16, None),
  ],
)
def test_token_counts_are_those_of_the_release(kw, tokens, first):
  model = ps3.PS3Vision(**ORACLE)
  image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.uint8)

  def f(p, x):
    return model.apply({"params": p}, x, method="encode_image", **kw)

  out = jax.eval_shape(f, n_params(**ORACLE), image)
  assert out["last_hidden"].shape == (2, tokens, 64)
  assert first is None or tuple(x.shape[1] for x in out["looks"][0]) == first


@pytest.mark.parametrize(
  "seed, hw", [(0, (64, 64)), (1, (64, 40)), pytest.param(2, (33, 70), marks=pytest.mark.thorough)]
)
def test_features_of_two_looks_equal_numpy(seed, hw):
  model, params, image, prompt = make(seed, hw)
  prompt = None if seed % 2 else prompt
  out = encode(model, params, image, prompt)
  counts = model.plan(hw, num_looks=2)
  hidden, looks, score = numpy_reference(model, params).encode(image, counts, prompt)
  close(out["score"], score)
  for ours, theirs in zip(out["looks"], looks):
    for a, b in zip(ours, theirs):
      np.testing.assert_array_equal(a, b)
  close(out["last_hidden"], hidden)


@pytest.mark.parametrize(
  "hw, pool_gt, kw",
  [
    ((64, 64), True, {}),
    ((64, 64), False, {}),
    pytest.param((48, 72), True, {}, marks=pytest.mark.thorough),
    ((64, 40), True, RADIO),
  ],
)
def test_training_pass_equals_numpy(hw, pool_gt, kw):
  model, params, image, prompt = make(4, hw, b=3, **kw)
  h, w = hw
  box = np.array([[5.3, 7.7, 21.2, 19.1], [0, 0, w, h], [w - 9, h - 9, w, h]], np.float32)
  is_global = np.array([False, True, False])

  pool = "gt" if pool_gt else "all"
  pooled, out = run(model, params, "__call__", image, prompt, box, is_global, pool_selected=pool)
  reference = numpy_reference(model, params)
  counts = model.plan(hw, num_looks=1)[0]
  close(pooled, reference.train(image, counts, prompt, box, is_global, pool_gt))
  hidden = reference.low(image)[0]
  close(out["topdown"]["score"], reference.score(image, hidden, prompt))
  close(out["bottomup"]["score"], reference.score(image, hidden))
  prob, forced = reference.maps(reference.score(image, hidden, prompt), hw, box)
  for ours, p, g in zip(out["forced_prob"], prob, forced):
    close(ours, np.where(g, 1, p))


def test_a_model_without_the_convolutional_branch_scores_by_the_low_resolution_alone():
  model, params, image, prompt = make(5, highres_branch=False)
  assert "highres_selection" not in params and "prompt_proj_for_highres" not in params
  reference = numpy_reference(model, params)
  low = run(model, params, "low", image)
  ours = run(model, params, "score", image, low, prompt)
  close(ours["score"], reference.score(image, reference.low(image)[0], prompt))


def test_smoothing_averages_the_maps_that_choose_after_forcing():
  model, params, image, prompt = make(6)
  box = np.array([[5.0, 7, 21, 19]] * 2, np.float32)
  plain = encode(model, params, image, prompt)
  reference = numpy_reference(model, params)
  prob, forced = reference.maps(np.float64(plain["score"]), (64, 64), box)
  maps = [np.where(f, 1, p) for f, p in zip(forced, prob)]
  pooled = [ps3_reference.pool(m, (6, 6), np.mean) for m in maps]
  smooth = [ps3_reference.nearest(m, p.shape[1:]) for m, p in zip(pooled, prob)]
  out = encode(model.clone(smooth_selection_prob=True), params, image, prompt, box=box)
  budget = np.sum(model.plan((64, 64), num_looks=2), axis=0)
  for ours, m, n in zip(out["index"], smooth, budget):
    picked = np.sort(np.take_along_axis(m.reshape(2, -1), np.asarray(ours), 1), axis=1)
    # By value: rounding may order plateaus that are equal but for the last bit.
    np.testing.assert_allclose(picked, np.sort(m.reshape(2, -1), axis=1)[:, -n:], rtol=1e-6)


def test_looks_cover_all_tokens_once_and_scan_equals_a_loop():
  model, params, image, prompt = make(7)
  out = encode(model, params, image, prompt, num_looks="all")
  (h, w), _ = grids = model.grids((64, 64))
  for s, grid in enumerate(grids):
    every = np.concatenate([look[s] for look in out["looks"]], axis=1)
    np.testing.assert_array_equal(np.sort(every, axis=1), [np.arange(grid[0] * grid[1])] * 2)
  low = run(model, params, "low", image)
  full = np.zeros((2, h * w * 5, 24), np.float32)
  for look in out["looks"]:
    place = np.concatenate([look[0], look[1] + h * w], axis=1)
    tokens = run(model, params, "high", image, low["kv"], look)[0]
    np.put_along_axis(full, place[:, :, None], np.asarray(tokens), 1)
  np.testing.assert_allclose(out["last_hidden"][:, 16:], full, rtol=0, atol=1e-5)
  np.testing.assert_allclose(out["hidden"][-1], out["last_hidden"])
  assert len(out["hidden"]) == 2 and out["hidden"][0].shape == out["last_hidden"].shape


def test_a_scanned_trunk_gives_the_same():
  model, params, image, prompt = make(8)
  a = encode(model, params, image, prompt)
  scanned = layouts.loop_to_scan(params)
  b = encode(model.clone(scan=True), scanned, image, prompt)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_pixels_that_were_not_selected_do_not_matter_to_the_high_resolution_tokens():
  # At the top scale patches are cut unresized, so only pixels inside the chosen ones count.
  model, params, image, _ = make(9)
  low = run(model, params, "low", image)
  index = [jnp.zeros((2, 0), jnp.int32), jnp.asarray([[3, 77, 200], [0, 100, 255]], jnp.int32)]

  def f(x):
    return run(model, params, "high", x, low["kv"], index)[0]

  chosen = np.zeros((2, 16, 16), bool)
  np.put_along_axis(chosen.reshape(2, -1), np.asarray(index[1]), True, 1)
  chosen = chosen.repeat(4, 1).repeat(4, 2)[..., None]
  other = np.where(chosen, image, 255 - image)
  np.testing.assert_array_equal(f(image), f(other))
  assert np.abs(f(image) - f(np.where(chosen, 255 - image, image))).max() > 0.1


def test_samples_do_not_see_each_other():
  model, params, image, prompt = make(10)
  a = encode(model, params, image, prompt)
  b = encode(model, params, np.stack([255 - image[0], image[1]]), np.stack([-prompt[0], prompt[1]]))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x[1], y[1], rtol=0, atol=1e-5)


def test_a_sample_without_ground_truth_tokens_pools_all_of_its_tokens():
  model, params, image, prompt = make(11, b=3)
  # Inverted: no pixel is inside, so neither forcing nor pooling has a token to keep.
  args = image, prompt, np.float32([[30, 30, 10, 10]] * 3), np.zeros(3, bool)
  gt, everything = (
    run(model, params, "__call__", *args, pool_selected=pool)[0] for pool in ("gt", "all")
  )
  np.testing.assert_allclose(gt, everything, rtol=0, atol=1e-6)


def test_scores_from_outside_replace_the_choice_but_not_the_report():
  model, params, image, prompt = make(12)
  scores = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
  out = encode(model, params, image, prompt, scores=scores)
  same = encode(model, params, image, prompt)
  np.testing.assert_allclose(out["score"], same["score"], rtol=0, atol=1e-6)
  # 40 tokens per look: the best cell holds 4 and 16 of the 8 and 32.
  best = scores.reshape(2, -1).argmax(1)
  for b in range(2):
    first = set(np.asarray(out["looks"][0][0][b]))
    y, x = divmod(int(best[b]), 4)
    assert {(2 * y + i) * 8 + 2 * x + j for i in (0, 1) for j in (0, 1)} <= first
  with pytest.raises(ValueError, match="one map per high-resolution scale"):
    model.apply({"params": params}, image, scores=[scores, scores], method="encode_image")


def test_gradients_reach_what_the_release_trains_and_skip_dead_outputs():
  model, params, image, prompt = make(13)
  box = np.array([[5.0, 7, 21, 19]] * 2, np.float32)

  def sums(p, prompt):
    y, out = model.apply({"params": p}, image, prompt, box)
    scores = jnp.sum(out["topdown"]["score"] ** 2) + jnp.sum(out["bottomup"]["score"] ** 2)
    return jnp.stack([jnp.sum(y**2), scores])

  jacobian = jax.jit(jax.jacrev(sums, (0, 1)))(params, prompt)
  (of_pool, pool_of_prompt), (of_score, score_of_prompt) = (
    jax.tree.map(lambda x, i=i: x[i], jacobian) for i in (0, 1)
  )

  def norm(tree):
    return float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)))

  # Through the choice of tokens flows nothing, so pooling does not teach where to look.
  for name in ("selection_feature_proj", "highres_selection", "prior_prompt"):
    assert norm(of_pool[name]) == 0
  assert norm(pool_of_prompt) == 0
  for name in ("embedding", "Transformer", "MAPHead_0", "pos_emb_residual_0", "pos_emb_residual_1"):
    assert norm(of_pool[name]) > 0
  # The scores teach the trunk's low-resolution pass and whoever made the prompt.
  for name in ("Transformer", "embedding", "prior_prompt", "highres_selection"):
    assert norm(of_score[name]) > 0
  assert norm(score_of_prompt) > 0
  assert norm(of_score["selection_feature_proj"]["fc2"]["kernel"][:, 24:]) == 0
  assert norm(of_score["prompt_proj_for_highres"]["kernel"][:, 8:]) == 0
  assert norm(of_score["selection_feature_proj"]["fc2"]["kernel"][:, :24]) > 0


def test_keys_and_values_of_the_low_pass_are_not_detached():
  model, params, image, _ = make(14)
  index = [jnp.asarray([[1, 2]] * 2), jnp.asarray([[5, 9]] * 2)]

  def f(p, frozen):
    kv = model.apply({"params": p}, image, method="low")["kv"]
    kv = jax.lax.stop_gradient(kv) if frozen else kv
    return jnp.sum(model.apply({"params": p}, image, kv, index, method="high")[0] ** 2)

  grad = jax.jit(jax.grad(f), static_argnums=1)
  a, b = (grad(params, frozen)["pos_embedding"] for frozen in (False, True))
  assert np.abs(a - b).max() > 1e-3


def test_recomputing_in_the_backward_pass_changes_no_gradient():
  model, params, image, prompt = make(15)
  box = np.array([[5.0, 7, 21, 19]] * 2, np.float32)

  def gradients(model):
    def f(p, prompt):
      y, out = model.apply({"params": p}, image, prompt, box)
      scores = jnp.sum(out["topdown"]["score"] ** 2) + jnp.sum(out["bottomup"]["score"] ** 2)
      return jnp.sum(y**2) + scores

    return jax.jit(jax.grad(f, (0, 1)))(params, prompt)

  kept, again = gradients(model), gradients(model.clone(remat_policy="nothing_saveable"))
  tiny_vit.assert_close(again, kept)


def test_memory_stays_far_below_a_dense_position_table():
  # 270 x 270 patches at the top: a table per sample would take b * 72,900 * d * 4 bytes. A wide
  # model with a small budget makes any such temporary stand out.
  b, width = 4, 256
  model = ps3.PS3Vision(**TINY | dict(
    width=width, depth=1, mlp_dim=64, num_heads=4, posemb_grid=(27, 27), select_layers=(0,),
    scales=(108, 216, 432, 1080), max_select_num=64, selection_size=108))  # fmt: skip
  shape = jax.ShapeDtypeStruct
  image = shape((b, 1080, 1080, 3), jnp.uint8)
  args = image, shape((b, width), jnp.float32), shape((b, 4), jnp.float32)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])

  def f(p, *a):
    return model.apply({"params": p}, *a)[0]

  temp = jax.jit(f).lower(params, *args).compile().memory_analysis().temp_size_in_bytes
  dense = b * 72_900 * width * 4
  assert temp < dense / 8


def test_uint8_and_float_images_give_the_same():
  model, params, image, _ = make(15)
  a = run(model, params, "low", image)["pooled"]
  b = run(model, params, "low", image.astype(np.float32))["pooled"]
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_scores():
  model, params, image, prompt = make(16, dtype="bfloat16")
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  out = encode(model, params, image, prompt)
  assert out["last_hidden"].dtype == jnp.bfloat16 and out["score"].dtype == jnp.float32
  exact = encode(model.clone(dtype="float32"), params, image, prompt)
  # Three blocks at eight bits of mantissa.
  np.testing.assert_allclose(out["score"], exact["score"], rtol=0, atol=0.1)


@pytest.mark.parametrize(
  "kw, said",
  [
    (dict(scales=(16, 40)), "whole multiple"),
    (dict(scales=(16,)), "at least two"),
    (dict(patch_size=5), "divides"),
    (dict(select_layers=(0, 3)), "select_layers"),
    (dict(pool_type="gap"), "map"),
    (dict(selection_size=2), "selection_size"),
    (dict(posemb_fit="crop", posemb_grid=(16, 15)), "posemb_grid"),
    (dict(posemb_fit="cut"), "posemb_fit"),
    (dict(pool_width=32), "adapter_hidden"),
    (dict(max_select_num_each_scale=(8, 0, 0)), "one count"),
  ],
)
def test_impossible_fields_are_explained(kw, said):
  model = ps3.PS3Vision(**TINY | kw)
  with pytest.raises(ValueError, match=said):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8))


def test_an_image_without_batch_is_explained():
  model, params, image, _ = make(0)
  with pytest.raises(ValueError, match="batch"):
    model.apply({"params": params}, image[0], method="low")


def test_reference_and_model_agree_on_the_resized_positions():
  # Guards the reference itself: the same table through jax.image.resize.
  model, params, _, _ = make(17)
  table = params["pos_embedding"][0]
  ours = resample.table_rows(table.reshape(4, 4, -1), (16, 10), jnp.arange(160))
  theirs = jax.image.resize(table.reshape(4, 4, -1), (16, 16, 24), "cubic", antialias=True)
  np.testing.assert_allclose(ours, theirs[:, :10].reshape(160, -1), rtol=0, atol=1e-5)
  numpy_table = vit_reference.positions(np.float64(table), (4, 4), (16, 16))
  np.testing.assert_allclose(
    ours, numpy_table.reshape(16, 16, -1)[:, :10].reshape(160, -1), rtol=0, atol=1e-5
  )
