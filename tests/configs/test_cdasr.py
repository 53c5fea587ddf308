"""CDASR's configs take the tower that they are told of, and shrink for every network."""

import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from configs.cdasr import meta, train
from tests import tiny_run


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
  return str(tiny_run.save(tmp_path_factory.mktemp("tower"), name="clip"))


def test_the_encoders_weights_are_those_of_the_tower_that_was_named(tower):
  c = train.get_config(f"tower={tower}")
  assert c.init.path == tower and c.model.encoder["model"]["image"]["width"] == 32
  assert train.get_config(f"tower={tower},weights=elsewhere").init.path == "elsewhere"
  assert train.get_config().init.path == "data/clip_vit_b32"


@pytest.mark.parametrize("config, arg", [
    (train, "scale=3"), (train, "net=swinir_light"), (train, "net=swinir_light,scale=3"),
    (train, "scale=16"), (meta, "inner=0"), (meta, "scale=3")])
def test_a_smoke_run_is_a_model_whatever_is_asked_for(config, arg):
  c = config_lib.resolve(config.get_config(f"runlocal,{arg}"))
  task = tasks.make(c.task, c.model)
  assert task.image_size == c.input["image_size"] <= 128
  assert (task.config.meta is None) == (config is train or "inner=0" in arg)
