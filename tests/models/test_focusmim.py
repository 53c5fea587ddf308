"""FocusMIM's autoencoder: the published sizes, and float64 NumPy's numbers."""

import jax
import numpy as np
import pytest

from big_vision_ext.convert import focusmim as table
from big_vision_ext.convert import lazy, ours
from big_vision_ext.core import sharding, trees
from big_vision_ext.models import focusmim
from tests.models import focusmim_reference as reference

SMALL = (4, 6, 8)


def drawn(widths, seed=0):
  """Random parameters, biases included, of a size that keeps signals alive."""
  rng = np.random.default_rng(seed)
  return {name: (rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 4))).astype(
    np.float32) for name, shape in ours.shapes("focusmim", {"image": {"widths": widths}}).items()}


def init(size=(8, 8), **fields):
  model = focusmim.ConvAutoencoder(**fields)
  image = np.zeros((1, *size, 3), np.float32)
  return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])


def test_the_published_model_has_the_published_number_of_parameters():
  params = init()
  assert trees.count(params["encoder"]) == 1_072_608
  assert trees.count(params["decoder"]) == 924_858
  registered = table.export(lazy.Tensors(
    {n: np.zeros(x.shape, np.float32) for n, x in trees.flatten(params).items()}), {"image": {}})
  count = {part: sum(int(np.prod(registered.lazy(n).shape)) for n in registered
                     if n.startswith(part)) for part in ("encoder", "decoder")}
  assert count == {"encoder": 1_116_064, "decoder": 968_314}


def test_shapes_told_without_the_model_are_those_of_the_model():
  for widths, depth in ((SMALL, 3), ((5,), 1), ((4, 5), 2)):
    found = {n: x.shape for n, x in trees.flatten(
      init(widths=widths, depth=depth)).items()}
    assert found == ours.shapes("focusmim", {"image": {"widths": widths, "depth": depth}})


@pytest.mark.parametrize("size", [(16, 16), (24, 8), (8, 40)])
@pytest.mark.parametrize("seed", range(2))
def test_images_and_latents_are_those_of_the_definition_whatever_the_shape(size, seed):
  params = drawn(SMALL, seed)
  image = np.random.default_rng(seed + 5).random((2, *size, 3), np.float32)
  model = focusmim.ConvAutoencoder(widths=SMALL)
  got, out = jax.jit(lambda p, x: model.apply({"params": p}, x))(trees.nest(params), image)
  state = table.export(lazy.Tensors(params), {"image": {"widths": SMALL}})
  want, latent = reference.forward(state, image.transpose(0, 3, 1, 2).astype(np.float64))
  assert out["latent"].shape == (2, size[0] // 8, size[1] // 8, 8)
  assert np.mean(latent == 0) < 0.9 and want.std() > 0.01
  # float32 through 18 blocks of at most 72 products, of numbers of size one.
  np.testing.assert_allclose(out["latent"], latent.transpose(0, 2, 3, 1), atol=2e-6 * latent.max())
  np.testing.assert_allclose(got, want.transpose(0, 2, 3, 1), atol=2e-6)


def test_the_skip_that_enlarges_reaches_every_second_row_and_column_only():
  conv = focusmim.Conv(2, 1, 2, True)
  x = np.random.default_rng(0).random((1, 3, 5, 4), np.float32)
  kernel, bias = np.random.default_rng(1).random((4, 2), np.float32), np.float32([0.3, -0.7])
  y = np.array(conv.apply({"params": {"kernel": kernel[None, None], "bias": bias}}, x))
  assert y.shape == (1, 6, 10, 2)
  np.testing.assert_allclose(y[:, ::2, ::2], x @ kernel + bias, rtol=1e-6)
  y[:, ::2, ::2] = bias
  np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


def test_initial_values_are_pytorchs():
  """Uniform within 1 / sqrt(fan in), where a transposed convolution counts its outputs."""
  for transposed, fan in ((False, 9 * 16), (True, 9 * 64)):
    conv = focusmim.Conv(64, 3, 2, transposed)
    params = sharding.unbox(conv.init(jax.random.key(3), np.zeros((1, 4, 4, 16), np.float32)))
    bound = fan**-0.5
    for name, x in params["params"].items():
      x = np.asarray(x)
      assert np.abs(x).max() <= bound, name
      if name == "kernel":
        # 9,216 draws: the deviation of a uniform's is within 1 %, its mean within 4 of its errors.
        assert x.std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert abs(x.mean()) < 4 * bound / (3 * x.size) ** 0.5
      else:
        assert x.std() > 0.4 * bound


def test_bfloat16_computes_in_bfloat16_and_gives_float32():
  params = trees.nest(drawn(SMALL))
  image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)

  def run(dtype):
    model = focusmim.ConvAutoencoder(widths=SMALL, dtype=dtype)
    return jax.jit(lambda p: model.apply({"params": p}, image)[0])(params)

  half, full = run("bfloat16"), run("float32")
  assert half.dtype == full.dtype == np.float32
  assert 0 < np.abs(half - full).max() < 0.05


def test_sizes_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match="an image of 16 x 12 pixels cannot be halved 3 times"):
    init(size=(16, 12))
  with pytest.raises(ValueError, match="at least one stage"):
    init(widths=())
  with pytest.raises(ValueError, match="a stage must differ in width"):
    init(widths=(8, 8))
