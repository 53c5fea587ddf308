"""Scores from the words for levels, against the formula written out in float64."""

import json

import jax
import numpy as np
import pytest

from big_vision_ext.objectives import levels

score = jax.jit(levels.score)
VALUES = np.float32(levels.UNIQA_VALUES)
# float32 against float64: 20 products to a sum, an exponential of numbers up to 10.
CLOSE = dict(rtol=2e-5, atol=2e-6)


def by_hand(f, texts, log_scale, values):
  """Score and shares by plain loops."""
  unit = lambda z: z / np.linalg.norm(z)
  scores, shares = [], []
  for one in f.astype(np.float64):
    group_scores, group_shares = [], []
    for group in texts.astype(np.float64):
      z = np.array([[np.exp(log_scale) * unit(one) @ unit(t) for t in level] for level in group])
      p = np.exp(z - z.max())
      p = (p / p.sum()).sum(1)
      group_shares.append(p)
      group_scores.append(p @ np.asarray(values, np.float64))
    scores.append(np.mean(group_scores))
    shares.append(np.mean(group_shares, axis=0))
  return np.array(scores), np.array(shares)


@pytest.mark.parametrize("shape", [(1, 5, 1), (4, 5, 1), (3, 2, 1), (1, 5, 7)])
def test_scores_are_those_of_the_formula(shape):
  rng = np.random.default_rng(sum(shape))
  f, texts = rng.normal(0, 3, (6, 20)), rng.normal(0, 2, (*shape, 20))
  values = rng.uniform(0, 1, shape[1])
  got = score(f.astype(np.float32), texts.astype(np.float32), 2.3, values)
  want, probs = by_hand(f, texts, 2.3, values)
  np.testing.assert_allclose(got["score"], want, **CLOSE)
  np.testing.assert_allclose(got["probs"], probs, **CLOSE)
  np.testing.assert_allclose(np.sum(got["group_probs"], -1), 1, rtol=1e-6)


def test_an_ensemble_is_the_mean_of_its_groups():
  rng = np.random.default_rng(0)
  f = rng.normal(size=(3, 16)).astype(np.float32)
  texts = rng.normal(size=(4, 5, 1, 16)).astype(np.float32)
  alone = [score(f, texts[g:g + 1], 4.6, VALUES)["score"] for g in range(4)]
  np.testing.assert_allclose(score(f, texts, 4.6, VALUES)["score"], np.mean(alone, 0), rtol=1e-6)


def test_levels_the_other_way_round_turn_the_order_round():
  rng = np.random.default_rng(1)
  f = rng.normal(size=(40, 16)).astype(np.float32)
  texts = rng.normal(size=(1, 5, 1, 16)).astype(np.float32)
  up = score(f, texts, 3.0, VALUES)["score"]
  down = score(f, texts[:, ::-1], 3.0, VALUES)["score"]
  # Values 0.2 to 1 are symmetric around 0.6.
  np.testing.assert_allclose(up, 1.2 - down, atol=1e-6)
  assert (np.argsort(up) == np.argsort(-down)).all()


def test_the_best_words_give_the_best_value_and_length_does_not_matter():
  texts = np.eye(5, 8, dtype=np.float32)[None, :, None]
  found = score(7 * texts[0, :, 0], 0.1 * texts, np.log(100), VALUES)
  np.testing.assert_allclose(found["score"], levels.UNIQA_VALUES, rtol=1e-6)
  grad = jax.grad(lambda f: score(f, texts, 4.6, VALUES)["score"].sum())
  assert np.isfinite(grad(np.zeros((2, 8), np.float32))).all()


def test_the_published_prompts_are_there():
  base, ensemble = levels.READOUTS["uniqa"], levels.READOUTS["uniqa_ensemble"]
  assert base.prompts == ("bad image", "poor image", "fair image", "good image", "perfect image")
  assert base.values == (0.2, 0.4, 0.6, 0.8, 1.0)
  assert ensemble.shape == (4, 5, 1) and ensemble.prompts[:5] == base.prompts
  assert [group[2] for group in ensemble.groups] == [("fair image",)] * 4
  assert ensemble.prompts[14] == "extremely noise-free image"
  assert levels.READOUTS["uniqa_agiqa"].prompts[9] == "perfect content"


def test_readouts_are_read_from_files(tmp_path):
  path = tmp_path / "mine.json"
  path.write_text(json.dumps({"groups": [["ugly", "nice"], [["dull"], ["vivid"]]],
                              "values": [0, 1]}))
  found = levels.read(str(path))
  assert found.shape == (2, 2, 1) and found.prompts == ("ugly", "nice", "dull", "vivid")
  assert levels.read(levels.as_dict(found)) == found == levels.read(found)
  assert levels.read("clip_iqa").shape == (1, 2, 1)


@pytest.mark.parametrize("spec, message", [
    ("uniqua", "none of uniqa, .* and no file"),
    ({"groups": []}, "has .'groups'.*expected"),
    ({"groups": [], "values": []}, "expected the same for all groups"),
    ({"groups": [["a", "b"], ["a"]], "values": [0, 1]}, "expected the same for all groups"),
    ({"groups": [["a", "b"]], "values": [0, 1, 2]}, "a value for each level"),
    ({"groups": [["a", "a"]], "values": [0, 1]}, "'a' for two levels"),
    ({"groups": [["a", " "]], "values": [0, 1]}, "a prompt is ' '"),
    ({"groups": [["a"]], "values": [0]}, "one level only"),
])
def test_prompts_that_cannot_be_used_are_told(spec, message):
  with pytest.raises(ValueError, match=message):
    levels.read(spec)
