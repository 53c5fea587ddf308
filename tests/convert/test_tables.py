import numpy as np
import pytest

from big_vision_ext.convert import tables
from big_vision_ext.convert.lazy import ConvertError, Tensors
from tests.convert import cases

TABLE = [
    *tables.linear("a/block_{}/fc", "layers.{}.lin"), *tables.norm("a/norm", "ln"),
    *tables.conv("conv", "conv"), *tables.conv1x1("point", "point"),
    *tables.heads_in("mha", ("query", "key", "value"), "in_proj_weight", "in_proj_bias"),
    *tables.heads_out("mha/out", "out_proj"),
    tables.same("pos", "pos", squeeze=1), tables.same("t", "scale", scalar=True, optional=True)]
SHAPES = {
    "a/block_0/fc/kernel": (3, 5), "a/block_0/fc/bias": (5,), "a/block_1/fc/kernel": (3, 5),
    "a/block_1/fc/bias": (5,), "a/norm/scale": (3,), "a/norm/bias": (3,),
    "conv/kernel": (2, 4, 3, 7), "conv/bias": (7,), "point/kernel": (3, 5), "point/bias": (5,),
    "mha/query/kernel": (6, 3, 2), "mha/query/bias": (3, 2), "mha/key/kernel": (6, 3, 2),
    "mha/key/bias": (3, 2), "mha/value/kernel": (6, 3, 2), "mha/value/bias": (3, 2),
    "mha/out/kernel": (3, 2, 6), "mha/out/bias": (6,), "pos": (1, 4, 6), "t": (1,)}


@pytest.fixture
def ours():
  rng = np.random.default_rng(0)
  return {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}


def export(ours):
  return tables.export(TABLE, SHAPES, ours, format="test")


def load(theirs):
  return tables.load(TABLE, SHAPES, Tensors(theirs), "the file", format="test")


def test_layers_compute_the_same_on_both_sides(ours):
  """By PyTorch's definitions: Linear is x @ weight.T, heads lie one after another in a projection,
  a convolution's weight is (out, in, y, x)."""
  theirs = export(ours)
  x = np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)
  for i in (0, 1):
    want = x @ ours[f"a/block_{i}/fc/kernel"]
    np.testing.assert_allclose(x @ theirs[f"layers.{i}.lin.weight"].T, want, rtol=1e-6)
  np.testing.assert_array_equal(theirs["ln.weight"], ours["a/norm/scale"])
  y = np.random.default_rng(2).standard_normal((9, 6)).astype(np.float32)
  packed = y @ theirs["in_proj_weight"].T + theirs["in_proj_bias"]
  for i, name in enumerate(("query", "key", "value")):
    want = np.einsum("bd,dhk->bhk", y, ours[f"mha/{name}/kernel"]) + ours[f"mha/{name}/bias"]
    have = packed[:, 6 * i:6 * i + 6].reshape(9, 3, 2)
    # Sums of six products, in another order.
    np.testing.assert_allclose(have, want, atol=1e-5)
  heads = packed[:, :6].reshape(9, 3, 2)
  np.testing.assert_allclose(packed[:, :6] @ theirs["out_proj.weight"].T,
                             np.einsum("bhk,hkd->bd", heads, ours["mha/out/kernel"]), atol=1e-4)
  patch = np.random.default_rng(3).standard_normal((3, 2, 4)).astype(np.float32)
  np.testing.assert_allclose(np.einsum("ocyx,cyx->o", theirs["conv.weight"], patch),
                             np.einsum("yxco,cyx->o", ours["conv/kernel"], patch), atol=1e-5)
  assert theirs["point.weight"].shape == (5, 3, 1, 1)
  assert theirs["pos"].shape == (4, 6) and theirs["scale"].shape == ()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_there_and_back_is_bitwise_both_ways(ours, dtype):
  ours = {n: x.astype(dtype) for n, x in ours.items()}
  theirs = export(ours)
  cases.assert_same(load(theirs), ours)
  cases.assert_same(export(load(theirs)), theirs)


def test_nothing_is_read_before_it_is_asked_for(ours):
  from big_vision_ext.convert.lazy import Lazy
  reads = []
  lazy = {n: Lazy(x.shape, x.dtype, lambda n=n, x=x: reads.append(n) or x)
          for n, x in ours.items()}
  theirs = export(lazy)
  assert not reads
  theirs["in_proj_weight"]
  assert sorted(reads) == ["mha/key/kernel", "mha/query/kernel", "mha/value/kernel"]


def test_all_differences_are_listed_by_name_on_import(ours):
  theirs = dict(export(ours))
  del theirs["ln.weight"], theirs["layers.1.lin.bias"]
  theirs["layers.2.lin.weight"] = np.zeros((5, 3), np.float32)
  theirs["point.weight"] = theirs["point.weight"][..., 0]
  theirs["conv.bias"] = theirs["conv.bias"].astype(np.int32)
  with pytest.raises(ConvertError) as error:
    load(theirs)
  text = str(error.value)
  assert text.startswith("the file: its arrays are not those of this model")
  assert "missing in it (2):\n    layers.1.lin.bias [5]\n    ln.weight [3]" in text
  assert "extra in it (1):\n    layers.2.lin.weight float32[5, 3]" in text
  assert "point.weight: it has float32[5, 3, 1], expected [5, 3, 1, 1]" in text
  assert "not of floating numbers (1):\n    conv.bias: int32" in text


def test_all_differences_are_listed_by_name_on_export(ours):
  del ours["pos"]
  ours["new"] = np.zeros(3, np.float32)
  ours["mha/key/bias"] = ours["mha/key/bias"].T
  with pytest.raises(ConvertError) as error:
    export(ours)
  for part in ("missing in it (1):\n    pos [1, 4, 6]", "extra in it (1):\n    new float32[3]",
               "mha/key/bias: it has float32[2, 3], expected [3, 2]"):
    assert part in str(error.value)


def test_a_misspelt_name_is_recognised(ours):
  theirs = dict(export(ours))
  theirs["in_proj_wieght"] = theirs.pop("in_proj_weight")
  with pytest.raises(ConvertError, match="is 'in_proj_wieght' meant"):
    load(theirs)


def test_what_is_optional_may_be_absent_on_both_sides(ours):
  del ours["t"]
  theirs = export(ours)
  assert "scale" not in theirs
  assert "t" not in load(theirs)


def test_an_array_that_the_format_has_no_place_for_is_named(ours):
  with pytest.raises(ConvertError, match="(?s)format 'test' has no place.*extra/kernel"):
    tables.export(TABLE, SHAPES | {"extra/kernel": (2,)}, ours, format="test")


def test_names_of_no_use_can_be_ignored(ours):
  theirs = dict(export(ours)) | {"position_ids": np.arange(4)}
  found = tables.load(TABLE, SHAPES, Tensors(theirs), "the file", format="test",
                      ignore=["position_ids"])
  cases.assert_same(found, ours)
