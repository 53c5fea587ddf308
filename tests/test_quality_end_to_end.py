"""From captions to ratings: a tiny CLIP learns what noise is called, and an adapter helps it."""

import json

import numpy as np
import pytest

from big_vision_ext import cache_features, train, weights
from big_vision_ext.core import exit_codes, trees
from tests import stopped, toy_ratings

STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Forty references at five strengths of noise, described by a template."""
  return toy_ratings.write(tmp_path_factory.mktemp("described"), count=200, described=True)


def pretrain(workdir, data, *more):
  return train.main([
      "--config", f"configs/uniqa/demo.py:data={data},split=1,steps={STEPS}",
      "--workdir", str(workdir), "--config.batch_size=32", "--config.lr=2e-3",
      "--config.input.image_size=32", "--config.input.text_len=16",
      "--config.input.crop_scale=(1,1)",
      "--config.model.image={'width':32,'depth':2,'mlp_dim':64,'num_heads':2,'patch_size':8,"
      "'image_size':32,'num_classes':16}",
      "--config.model.text={'width':32,'depth':1,'mlp_dim':64,'num_heads':2,'vocab_size':259,"
      "'text_len':16,'eot_id':1}",
      "--config.evals.zero_shot.eval_percent=100", "--config.evals.zero_shot.batch_size=64",
      "--config.ckpt_steps=40", *more])


@pytest.fixture(scope="module")
def clip(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("clip")
  assert pretrain(workdir, data) == exit_codes.COMPLETE
  return workdir


@pytest.mark.slow
def test_words_rank_pictures_of_other_references_and_few_labels_rank_them_better(
    clip, data, tmp_path):
  """SRCC above 0.5 by words alone, better with an adapter from 50 labels."""
  by_words = json.loads((clip / "evaluation.json").read_text())["zero_shot/uniqa/srcc"]
  assert by_words > 0.5
  assert cache_features.main([
      "--weights", str(clip), "--data", data, "--out", str(tmp_path / "f"), "--crops", "2",
      "--batch", "64", "--eval-crops", "five_crop"]) == 0
  assert train.main([
      "--config", f"configs/uniqa/adapter.py:dataset=other,data={data},features={tmp_path / 'f'},"
      # A tower of 16 numbers, not of 512: the published rate hardly moves so small an adapter.
      "split=1,labels=50", "--config.lr=5e-3", "--workdir", str(tmp_path / "adapter"),
  ]) == exit_codes.COMPLETE
  found = json.loads((tmp_path / "adapter/evaluation.json").read_text())
  assert found["zero_shot/srcc"] == pytest.approx(by_words, abs=0.02)
  assert found["test/srcc"] > found["zero_shot/srcc"]
  assert found["test/rmse"] < found["zero_shot/rmse"]


@pytest.mark.slow
def test_a_pretraining_that_was_stopped_goes_on_to_the_same_towers(
    clip, data, tmp_path, monkeypatch):
  """Bit by bit, and the same scores."""
  stopped.at_batch(monkeypatch, STEPS // 2)
  assert pretrain(tmp_path / "run", data) == exit_codes.TERMINATED
  assert weights.load(tmp_path / "run").step < STEPS
  assert pretrain(tmp_path / "run", data) == exit_codes.COMPLETE
  found, want = (trees.flatten(weights.load(d).params) for d in (tmp_path / "run", clip))
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  found, want = (json.loads((d / "evaluation.json").read_text()) for d in (tmp_path / "run", clip))
  assert found == want
