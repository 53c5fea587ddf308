"""The six published PS3 models by their configs: tensors, parameters and tokens, without memory."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import trees

# config -> tensors in the released file, millions of parameters (vision, text), split of a look,
# looks to see everything: of the model cards' files and the release's code.
PUBLISHED = {
  "ps3_1p5k_siglip_so400m": (722, 485.9, 452.4, (512, 2048), 6),
  "ps3_4k_siglip_so400m": (723, 575.8, 452.4, (85, 341, 2134), 35),
  "ps3_1p5k_siglip2_so400m": (722, 485.9, 710.4, (512, 2048), 6),
  "ps3_4k_siglip2_so400m": (723, 575.8, 710.4, (85, 341, 2134), 35),
  "ps3_1p5k_cradio_l": (702, 441.6, 452.0, (512, 2048), 5),
  "ps3_4k_cradio_l": (703, 505.3, 452.0, (85, 341, 2134), 27),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_tensors_and_parameters(name):
  tensors, vision, text, split, looks = PUBLISHED[name]
  config = config_lib.load(f"configs/ps3/{name}.py")
  task = tasks.make(config.task, config.model)
  side = task.image_size
  batch = {
    "image": jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((1, 64), jnp.int32),
    "box": jax.ShapeDtypeStruct((1, 4), jnp.float32),
    "is_global": jax.ShapeDtypeStruct((1,), bool),
  }
  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  shapes = {name: x.shape for name, x in trees.flatten(params).items()}

  def millions(*rooms):
    sizes = (math.prod(s) for n, s in shapes.items() if n.split("/")[0] in rooms)
    return round(sum(sizes) / 1e6, 1)

  assert millions("img") == vision
  assert millions("txt", "prompt_proj") == text
  # Theirs fuses three projections (two in the pooling head) where ours has one each, and has a
  # tensor per block where ours are stacked; t and b are not in its files.
  depth = {"img": task.vision.depth, "txt": task.text.depth}
  ours = sum(depth[n[:3]] if "/encoderblock/" in n else 1 for n in shapes)
  assert ours - 4 * sum(depth.values()) - 2 - 2 == tensors
  assert task.vision.budget() == split
  assert len(task.vision.plan((side, side), num_looks="all")) == looks


def test_the_sizes_of_c_radio_are_the_released_ones():
  config = config_lib.load("configs/ps3/ps3_4k_cradio_l.py")
  vision = tasks.make(config.task, config.model).vision
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8)
  params = nn.unbox(jax.eval_shape(vision.init, jax.random.key(0), image)["params"])
  assert params["pos_embedding"].shape == (1, 65536, 1024)
  assert "encoder_norm" not in params["Transformer"]
  assert params["pool_adapter"]["fc1"]["kernel"].shape == (1024, 1520)
  assert params["pool_adapter"]["block_2"]["fc"]["kernel"].shape == (1520, 1520)
  assert params["pool_adapter"]["fc2"]["kernel"].shape == (1520, 1152)
  assert params["MAPHead_0"]["probe"].shape == (1, 1, 1152)
  assert params["MAPHead_0"]["MlpBlock_0"]["Dense_0"]["kernel"].shape == (1152, 4304)
  assert [params[f"pos_emb_residual_{i}"].shape[1] for i in range(3)] == [48**2, 96**2, 240**2]
