"""What is known after each look: numbers by hand, the same on any batches and devices."""

import jax
import numpy as np
import pytest

from big_vision_ext import evaluators, tasks
from big_vision_ext.core import sharding
from big_vision_ext.evaluators import fixations

MODEL = dict(
  image=dict(width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=2, image_size=8, scales=(4, 8),
             decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=16,
             surprise_hidden=8),
  windows=(2, 2), looks=2, policy="surprise")


@pytest.mark.slow
def test_results_do_not_depend_on_batches_or_devices(place):
  task = tasks.make("fixations", MODEL)
  params = sharding.unbox(task.init(jax.random.key(0), {"image": np.zeros((1, 8, 8, 3), np.uint8)}))
  found = []
  for devices, batch_size in ((1, 31), (8, 16)):
    evaluator = evaluators.make("fixations", {"type": "fixations", "batch_size": batch_size},
                                task=task, **place(devices))
    found.append(evaluator.run(params))
  # All 31 images of the split, whether or not anything is said about them.
  assert found[0]["images"] == 31
  costs = {f"{name}_after_{t}" for name in ("tokens", "gflop") for t in (1, 2)}
  assert {k.split("/")[0] for k in found[0]} == {"uniform", "surprise", "images"} | costs
  # Of 2 x 2 and 4 x 4 tokens 4 each, and a class token a look.
  assert [found[0][f"tokens_after_{t}"] for t in (1, 2)] == [9, 18]
  assert found[0]["uniform/gain_after_2"] == 0 and found[0]["surprise/gain_after_2"] != 0
  # Float32 errors summed in another order; decoding inverts a matrix made of them.
  assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-3)


def test_measures_are_means_over_images_and_a_gain_is_what_is_left_less_than_of_uniform():
  rng = np.random.default_rng(0)
  rows = {k: rng.uniform(1, 2, (6, 2)).astype(np.float32) for k in ("error", "remaining", "seen")}
  rows |= {"state": rng.normal(size=(6, 2, 3)), "gaze": rng.random((6, 2, 2))}
  rows |= {"token": rng.normal(size=(6, 2, 3)).astype(np.float32)}
  uniform = {"remaining": 2 * rows["remaining"]}
  got = fixations.measure(rows, uniform, 1.0)
  for i in (0, 1):
    assert got[f"gain_after_{i + 1}"] == pytest.approx(0.5)
    assert got[f"error_after_{i + 1}"] == pytest.approx(rows["error"][:, i].mean())


def test_decorrelation_is_that_of_the_tokens_of_a_look_over_images():
  """By the definition, in float64: correlations squared, the sum off the diagonal over D."""
  rng = np.random.default_rng(0)
  token = rng.normal(size=(50, 3, 8)) @ rng.normal(size=(8, 8))
  rows = {k: rng.uniform(1, 2, (50, 3)) for k in ("error", "remaining", "seen")}
  rows |= {"state": token, "gaze": rng.random((50, 3, 2)), "token": token}
  got = fixations.measure(rows, rows, 1.0)
  want = []
  for t in range(3):
    squares = np.corrcoef(token[:, t].T) ** 2
    want.append((squares.sum() - np.trace(squares)) / 8)
  # The evaluator adds 1e-5 to deviations around 1, and works in float32.
  assert got["decorrelation"] == pytest.approx(np.mean(want), rel=1e-3)
  assert got["decorrelation_floor"] == pytest.approx(7 / 49)
  assert got["decorrelation_excess"] == pytest.approx(np.mean(want) - 7 / 49, rel=1e-3)
  assert 1 < got["effective_rank"] <= 8


def test_what_lies_linearly_in_the_state_is_decoded_and_what_does_not_is_not():
  rng = np.random.default_rng(0)
  gaze = rng.random((400, 3, 2))
  state = gaze @ rng.normal(size=(2, 5)) + 0.01 * rng.normal(size=(400, 3, 5)) + 3
  assert fixations.decoded(state, gaze, 1e-3) > 0.99
  assert fixations.decoded(rng.normal(size=state.shape), gaze, 1e-3) < 0.05
  # Measured on images that it was not fitted on: as many numbers as images are no help.
  wide = rng.normal(size=(20, 1, 50))
  assert fixations.decoded(wide, rng.random((20, 1, 2)), 1e-6) < 0.2
  assert np.isnan(fixations.decoded(state[:2], gaze[:2], 1.0))


def test_the_curve_of_a_probe_over_looks(place):
  task = tasks.make("fixations", MODEL)
  params = sharding.unbox(task.init(jax.random.key(0), {"image": np.zeros((1, 8, 8, 3), np.uint8)}))
  found = [evaluators.make("knn", {"type": "knn", "ks": (1,), "looks": looks}, task=task,
                           **place()).run(params) for looks in (1, 2)]
  assert all(f["test_images"] == 26 for f in found) and found[0] != found[1]


@pytest.mark.parametrize("spec, message", [
  (dict(policies=("walks",)), "'walks'"), (dict(l2=0.0), "l2=0.0"),
  (dict(policy="walk"), "policies"),
])
def test_what_cannot_be_measured_is_refused(place, spec, message):
  task = tasks.make("fixations", MODEL)
  with pytest.raises(ValueError, match=message):
    evaluators.make("fixations", {"type": "fixations", **spec}, task=task, **place())


def test_a_task_without_looks_is_refused(place, task):
  with pytest.raises(ValueError, match="does not look around"):
    evaluators.make("fixations", {"type": "fixations"}, task=task, **place())
