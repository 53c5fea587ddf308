"""Stored results of several runs, beside each other and by setting."""

import itertools
import json

import numpy as np
import pytest

from big_vision_ext import comparison, evaluate


def _runs(folder, configs, results):
  paths = []
  for i, (config, result) in enumerate(zip(configs, results)):
    run = folder / f"run{i}"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config))
    (run / "evaluation.json").write_text(json.dumps(result))
    paths.append(str(run))
  return paths


def test_effects_are_found_and_seeds_are_chance(tmp_path, capsys):
  """A half of 2^3 settings with planted effects: exact without noise."""
  configs, results = [{"seed": 0, "model": {"width": 64}}], [{"top1": 0.5, "regions": 48}]
  for a, b in itertools.product((0, 1), repeat=2):
    model = {"width": 64} | ({"a": True} if a else {}) | ({"maps": "each"} if b else {})
    configs.append({"seed": len(configs), "model": model | ({"wide": 1} if a != b else {})})
    results.append({"top1": 0.5 + 0.25 * a - 0.125 * b, "regions": 48})
  runs = _runs(tmp_path, configs, results)
  assert evaluate.main(["--workdir", runs[0], "--compare", *runs[1:], "--effects"]) == 0
  printed = capsys.readouterr().out
  assert "model.a: default -> true: +0.2500 +- 0.0000" in printed
  assert "model.maps: default -> each: -0.1250 +- 0.0000" in printed
  assert "model.wide: default -> 1: " in printed
  assert "seed" not in printed and "regions" not in printed


@pytest.mark.parametrize("seed", range(3))
def test_effects_and_errors_equal_the_two_sample_formula(seed):
  """One setting of two levels: the difference of means, its error that of the pooled t-test."""
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=4), rng.normal(size=7) + 1
  levels = [{"k": "a"}] * 4 + [{"k": "b"}] * 7
  [(label, effect, error)] = comparison.fit_effects([*x, *y], levels)
  pooled = (x.var(ddof=1) * 3 + y.var(ddof=1) * 6) / 9
  assert label == "k: a -> b"
  np.testing.assert_allclose(effect, y.mean() - x.mean(), rtol=1e-12)
  np.testing.assert_allclose(error, np.sqrt(pooled * (1 / 4 + 1 / 7)), rtol=1e-12)


@pytest.mark.parametrize("levels, message", [
  ([{"a": "0"}, {"a": "1"}], "expected at least 3 runs"),
  ([{"a": "0", "b": "0"}] * 3 + [{"a": "1", "b": "1"}] * 3, "change together"),
])
def test_effects_that_cannot_be_told_are_refused(levels, message):
  with pytest.raises(ValueError, match=message):
    comparison.fit_effects(list(range(len(levels))), levels)


def test_columns_and_means(tmp_path, capsys):
  runs = _runs(tmp_path, [{}, {}], [{"top1": 0.25}, {"top1": 0.75, "recall": 0.5}])
  assert evaluate.main(["--workdir", runs[0], "--compare", runs[1]]) == 0
  assert "0.25" in capsys.readouterr().out
  assert evaluate.main(["--workdir", runs[0], "--compare", runs[1], "--mean"]) == 0
  printed = capsys.readouterr().out
  assert "0.5000 +- 0.3536  (2 runs)" in printed and "0.5000 +- nan  (1 runs)" in printed


@pytest.mark.parametrize("argv, message", [
  (["--workdir", "a", "--effects"], "expected --compare"),
  (["--workdir", "absent", "--compare", "absent2"], "absent/evaluation.json does not exist"),
])
def test_what_is_missing_is_named(argv, message, capsys):
  assert evaluate.main(argv) == 2
  assert message in capsys.readouterr().err
