"""Captions of a model on this machine are what transformers says of each picture by itself."""

import numpy as np
import pytest

from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]


def test_pictures_described_together_get_the_words_they_get_alone(tmp_path):
  """Prompts of other lengths, so that all but one are padded."""
  images = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
  prompts = ["word1 word2", "word3 word4 word5 word6 word7 word8 word9", "word1 word2"]
  out = harness.run("captioner_oracle.py", env="siglip", arrays={"images": images}, settings={
    "folder": str(tmp_path / "model"), "prompts": prompts, "tokens": 8})
  ours, theirs = (out[name].tobytes().decode().split("\n") for name in ("ours", "theirs"))
  assert ours == theirs and len(ours) == 3
  assert all(len(text.split()) >= 4 for text in ours)
  assert ours[0] != ours[1] and ours[0] != ours[2], "picture and prompt both count"
