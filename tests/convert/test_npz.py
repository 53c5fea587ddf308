import json

import ml_dtypes
import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import npz
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.core import trees
from big_vision_ext.models import layouts
from tests.convert import cases


@pytest.fixture
def params():
  return dict(cases.weights("siglip", cases.SIGLIP).params)


def save(path, params, prefix="params/"):
  np.savez(path, **{prefix + n: x for n, x in params.items()})
  return path


def stacked(params):
  return trees.flatten(layouts.loop_to_scan(trees.nest(params)))


@pytest.mark.parametrize("layout", npz.LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_export_comes_back_with_the_same_bits(tmp_path, layout, dtype):
  for task, model in (("siglip", cases.SIGLIP), ("ps3", cases.PS3["custom"])):
    weights = cases.weights(task, model, dtype=dtype)
    convert.write("npz", tmp_path / task, weights, layout=layout)
    back = convert.read(tmp_path / task)
    cases.assert_same(back.params, weights.params)
    assert (back.task, back.model) == (task, model)
    convert.write("npz", tmp_path / "again", back, layout=layout)
    data = [(tmp_path / name / npz.FILE).read_bytes() for name in (task, "again")]
    assert data[0] == data[1]


def test_scan_exports_are_stacked_in_both_towers(tmp_path, params):
  convert.write("npz", tmp_path / "e", cases.weights("siglip", cases.SIGLIP), layout="scan")
  have = dict(np.load(tmp_path / "e" / npz.FILE))
  cases.assert_same(have, {f"params/{n}": x for n, x in stacked(params).items()})


@pytest.mark.parametrize("prefix", ["params/", "opt/target/", ""])
@pytest.mark.parametrize("scan", [False, True])
def test_big_vision_files_of_either_layout_and_any_root_are_read(tmp_path, params, prefix, scan):
  written = stacked(params) if scan else params
  path = save(tmp_path / "x.npz", written, prefix)
  if prefix == "params/":
    # The optimiser's state beside them is left alone.
    np.savez(path, **dict(np.load(path)), **{"opt/0/count": np.int32(3)})
  found = convert.read(path)
  cases.assert_same(found.params, params)
  want = {**cases.SIGLIP["image"], "act": "gelu_tanh", "pool_type": "map"}
  assert found.task == "siglip" and found.model["image"] == want
  assert found.model["text"]["vocab_size"] == 100 and found.model["text"]["out_dim"] == 48


def test_bfloat16_that_numpy_forgot_is_recognised(tmp_path, params):
  params = {n: x.astype(ml_dtypes.bfloat16) for n, x in params.items()}
  path = save(tmp_path / "x.npz", params)
  assert np.load(path)["params/t"].dtype == "V2"
  cases.assert_same(convert.read(path).params, params)


def test_a_part_of_a_tree_is_read_and_not_checked(tmp_path, params):
  found = convert.read(f"{save(tmp_path / 'x.npz', params)}:img")
  image = {n.removeprefix("img/"): x for n, x in params.items() if n.startswith("img/")}
  cases.assert_same(found.params, image)
  assert found.task == ""
  with pytest.raises(ConvertError, match="no arrays under vid/"):
    convert.read(f"{tmp_path / 'x.npz'}:vid")
  with pytest.raises(ConvertError, match="y.npz:img: there is no such file"):
    convert.read(tmp_path / "y.npz:img")


def old_position_tables(p):
  p["img/Transformer/posembed_input/pos_embedding"] = p.pop("img/pos_embedding")


def position_tables_inside(p):
  p["img/Transformer/pos_embedding"] = p.pop("img/pos_embedding")


def two_text_tables(p):
  p["txt/Encoder_0/pos_embedding"] = p["txt/pos_embedding"] / 4
  p["txt/pos_embedding"] = p["txt/pos_embedding"] * 0.75


def one_text_table_inside(p):
  p["txt/Encoder_0/pos_embedding"] = p.pop("txt/pos_embedding")


def pooling_not_nested(p):
  for name in [n for n in p if n.startswith("img/MAPHead_0/")]:
    p[name.replace("MAPHead_0/", "")] = p.pop(name)


def counted_over_all_modules(p):
  new = {"LayerNorm_0": "LayerNorm_0", "MultiHeadDotProductAttention_0":
         "MultiHeadDotProductAttention_1", "LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
  for name in [n for n in p if "encoderblock_" in n]:
    parts = name.split("/")
    parts[3] = new[parts[3]]
    p["/".join(parts)] = p.pop(name)


def naflex(p):
  p["img/embedding/kernel"] = p["img/embedding/kernel"].reshape(-1, 48)
  p["img/pos_embedding"] = p["img/pos_embedding"].reshape(5, 5, 48)


@pytest.mark.parametrize("older", [
    old_position_tables, position_tables_inside, two_text_tables, one_text_table_inside,
    pooling_not_nested, counted_over_all_modules, naflex], ids=lambda f: f.__name__)
def test_older_spellings_become_todays(tmp_path, params, older):
  written = dict(params)
  older(written)
  found = convert.read(save(tmp_path / "x.npz", written)).params
  assert sorted(found) == sorted(params)
  for name in params:
    # Halves and quarters add up exactly but for a rounding of the parts.
    np.testing.assert_allclose(found[name], params[name], rtol=1e-6, err_msg=name)


def test_the_class_tokens_position_moves_from_the_table_to_the_token(tmp_path):
  model = {**cases.SIGLIP, "image": {**cases.SIGLIP["image"], "pool_type": "tok"}}
  params = dict(cases.weights("siglip", model).params)
  row = np.full((1, 1, 48), 0.5, np.float32)
  table = np.concatenate([row, params["img/pos_embedding"]], 1)
  path = save(tmp_path / "x.npz", params | {"img/pos_embedding": table})
  found = convert.read(path)
  cases.assert_same(found.params, params | {"img/cls": params["img/cls"] + row})
  assert found.model["image"]["pool_type"] == "tok"


def test_models_without_text_head_or_bias_are_told_apart(tmp_path, params):
  del params["b"], params["txt/head/kernel"], params["txt/head/bias"]
  found = convert.read(save(tmp_path / "x.npz", params))
  assert found.model["bias_init"] is None and found.model["text"]["out_dim"] == 0


def test_what_is_missing_extra_or_misshapen_is_listed(tmp_path, params):
  del params["img/Transformer/encoderblock_1/LayerNorm_0/bias"]
  params["img/extra"] = np.zeros(3, np.float32)
  params["txt/head/bias"] = np.zeros(7, np.float32)
  params["txt/head/kernel"] = np.zeros((32, 7, 1), np.float32)
  with pytest.raises(ConvertError) as error:
    convert.read(save(tmp_path / "x.npz", params))
  for part in ("missing in it (1):\n    img/Transformer/encoderblock_1/LayerNorm_0/bias [48]",
               "extra in it (1):\n    img/extra", "txt/head/kernel: it has float32[32, 7, 1]"):
    assert part in str(error.value)


def test_a_missing_block_is_a_gap(tmp_path, params):
  params = {n: x for n, x in params.items() if "Transformer/encoderblock_0/" not in n}
  with pytest.raises(ConvertError, match=r"missing in it \(16\):\n.*encoderblock_0/"):
    convert.read(save(tmp_path / "x.npz", params))
  with pytest.raises(ConvertError, match="from 0 on without a gap"):
    npz.scan_layout(Tensors(params))


def test_a_stack_with_too_few_blocks_is_named(tmp_path, params):
  params = stacked(params)
  name = "txt/Encoder_0/encoderblock/LayerNorm_1/scale"
  params[name] = params[name][:2]
  with pytest.raises(ConvertError, match=f"different numbers of blocks.*{name}"):
    convert.read(save(tmp_path / "x.npz", params))


def test_a_ps3_file_needs_its_settings(tmp_path):
  convert.write("npz", tmp_path / "e", cases.weights("ps3", cases.PS3["named"]))
  (tmp_path / "e" / convert.EXPORT_FILE).unlink()
  with pytest.raises(ConvertError, match="settings.*export.json"):
    convert.read(tmp_path / "e")


def test_export_json_that_is_damaged_is_named(tmp_path, params):
  convert.write("npz", tmp_path / "e", cases.weights("siglip", cases.SIGLIP))
  note = tmp_path / "e" / convert.EXPORT_FILE
  assert json.loads(note.read_text())["kind"] == convert.EXPORT_KIND
  note.write_text("{")
  with pytest.raises(ConvertError, match="export.json: is not JSON"):
    convert.read(tmp_path / "e")
