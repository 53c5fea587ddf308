"""CDASR's configs take the tower that they are told of, and shrink for every network."""

import pytest

from configs.cdasr import train
from tests import tiny_run


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
  return str(tiny_run.save(tmp_path_factory.mktemp("tower"), name="clip"))


def test_the_encoders_weights_are_those_of_the_tower_that_was_named(tower):
  c = train.get_config(f"tower={tower}")
  assert c.init.path == tower and c.model.encoder["model"]["image"]["width"] == 32
  assert train.get_config(f"tower={tower},weights=elsewhere").init.path == "elsewhere"
  assert train.get_config().init.path == "data/clip_vit_b32"
