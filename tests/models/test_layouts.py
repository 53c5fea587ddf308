"""Loop and scan layouts turn into each other without loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import layouts


def tree(depth=3):
  rng = np.random.default_rng(0)

  def block():
    return {"Dense_0": {"kernel": rng.standard_normal((2, 3)), "bias": np.ones(3)}}

  def tower(n):
    return {f"encoderblock_{i}": block() for i in range(n)} | {"norm": np.ones(2)}

  return {"img": {"Transformer": tower(depth)}, "txt": {"Encoder_0": tower(12)}, "t": np.ones(1)}


def test_both_towers_are_stacked_in_the_order_of_their_numbers():
  params = tree()
  got = layouts.loop_to_scan(params)
  kernel = got["txt"]["Encoder_0"]["encoderblock"]["Dense_0"]["kernel"]
  assert isinstance(kernel, np.ndarray) and kernel.shape == (12, 2, 3)
  for i in range(12):  # Also 10 after 9, not after 1.
    want = params["txt"]["Encoder_0"][f"encoderblock_{i}"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[i], want)
  assert got["img"]["Transformer"]["encoderblock"]["Dense_0"]["bias"].shape == (3, 3)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_there_and_back_is_the_identity(convert):
  params = jax.tree.map(convert, tree())
  back = layouts.scan_to_loop(layouts.loop_to_scan(params))
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_tree_already_in_the_layout_is_left_alone():
  scan = layouts.loop_to_scan(tree())
  again = layouts.loop_to_scan(scan)
  assert jax.tree.structure(again) == jax.tree.structure(scan)
  assert jax.tree.structure(layouts.scan_to_loop(tree())) == jax.tree.structure(tree())


def test_a_missing_block_is_named():
  params = tree()
  del params["img"]["Transformer"]["encoderblock_1"]
  with pytest.raises(ValueError, match=r"img/Transformer/.*\[0, 2\]"):
    layouts.loop_to_scan(params)


def test_blocks_of_different_shapes_or_names_are_refused():
  params = tree()
  params["img"]["Transformer"]["encoderblock_1"]["Dense_0"]["bias"] = np.ones(4)
  with pytest.raises(ValueError, match="img/Transformer/ differ"):
    layouts.loop_to_scan(params)
  params["img"]["Transformer"]["encoderblock_1"] = {"Dense_1": np.ones(4)}
  with pytest.raises(ValueError, match="img/Transformer/ differ"):
    layouts.loop_to_scan(params)


def test_a_stack_of_uneven_depth_is_refused():
  scan = layouts.loop_to_scan(tree())
  scan["img"]["Transformer"]["encoderblock"]["Dense_0"]["bias"] = np.ones((2, 3))
  with pytest.raises(ValueError, match="different numbers of layers"):
    layouts.scan_to_loop(scan)
