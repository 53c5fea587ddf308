"""Restoration networks in PyTorch's layouts: names, both ways, to the bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import convert, weights
from big_vision_ext.convert import files, ours, restoration, restoration_nets, torch_zip
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.core import sharding, trees
from big_vision_ext.models import restoration as nets
from tests import tiny_run
from tests.convert import cases

# Small ones of every layout, no two sizes of a network the same.
NETS = {
  "msrresnet": dict(name="msrresnet", scale=1, fields=dict(width=5, depth=2)),
  "msrresnet-x3": dict(name="msrresnet", scale=3, fields=dict(width=5, depth=1)),
  "msrresnet-x4": dict(name="msrresnet", scale=4, fields=dict(width=5, depth=1)),
  "edsr-x4": dict(name="edsr", scale=4, fields=dict(
    width=6, depth=2, global_skip=False, mean=[0.4, 0.3, 0.2], img_range=100.0)),
  "swinir-x8": dict(name="swinir", scale=8, fields=dict(
    width=12, depth=2, blocks=3, heads=3, window=4, tail_width=7, mlp_ratio=1.5)),
  "swinir_light": dict(name="swinir_light", scale=1, fields=dict(
    width=12, depth=1, blocks=2, heads=2, window=4)),
  "swinir_light-x3": dict(name="swinir_light", scale=3, fields=dict(
    width=12, depth=2, blocks=1, heads=2, window=4)),
  "swinir-denoise": dict(name="swinir", scale=1, fields=dict(
    width=12, depth=2, blocks=1, heads=2, window=4, tail="denoise")),
  "restormer": dict(name="restormer", scale=1, fields=dict(
    width=8, depth=[1, 2, 1, 3], refinement=2, mlp_ratio=2.66)),
  "restormer-free": dict(name="restormer", scale=1, fields=dict(
    width=8, depth=1, refinement=1, mlp_ratio=3.3, norm_bias=False)),
}


def drawn(net, dtype="float32", **model):
  found = cases.weights("restore", {"net": net, **model}, dtype=dtype)
  return dataclasses.replace(found, input={"image_size": 16})


def built(net):
  """Names and shapes of the network itself."""
  module = nets.build(net["name"], net["scale"], **net["fields"])
  x = jnp.zeros((1, 8, 8, 3))
  params = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
  return {n: tuple(p.shape) for n, p in trees.flatten(params).items()}


@pytest.mark.parametrize("case", [*NETS, "unet"])
def test_shapes_told_without_the_network_are_those_of_the_network(case):
  net = NETS.get(case) or dict(name="unet", scale=1, fields=dict(width=4, levels=3, depth=2))
  assert ours.shapes("restore", {"net": net}) == built(net)


@pytest.mark.parametrize("name", ["msrresnet", "edsr", "swinir", "swinir_light", "restormer"])
def test_without_fields_it_is_the_published_network(name):
  module = nets.build(name, 4 if name == "edsr" else 1)
  for field, value in restoration_nets.fields({"name": name, "scale": module.scale}).items():
    assert getattr(module, field) == value, field


@pytest.mark.parametrize("case", NETS)
def test_what_is_written_and_read_again_has_the_same_bits(tmp_path, case):
  before = drawn(NETS[case], "bfloat16" if case.endswith("x3") else "float32")
  convert.write("restoration", tmp_path / "e", before)
  assert convert.detect(tmp_path / "e") == "restoration"
  theirs = files.read_tensors(tmp_path / "e" / "model.pth")
  files.write_safetensors(tmp_path / "bare.safetensors", {n: theirs.lazy(n) for n in theirs})
  for path in (tmp_path / "e", tmp_path / "bare.safetensors"):
    after = convert.read(path)
    cases.assert_same(after.params, before.params)
    # Sizes are told by shapes alone, and build a network of these arrays.
    net = after.model["net"]
    assert (net["scale"], after.task) == (NETS[case]["scale"], "restore")
    assert built(net) == {n: tuple(x.shape) for n, x in before.params.items()}
  again = torch_bytes(tmp_path, after)
  assert again.keys() == set(theirs)
  for name in again:
    np.testing.assert_array_equal(np.asarray(again[name]), np.asarray(theirs[name]), err_msg=name)
  assert "net.load_state_dict" in (tmp_path / "e" / "README.md").read_text()


def torch_bytes(tmp_path, found):
  found = dataclasses.replace(found, input={"image_size": 16})
  convert.write("restoration", tmp_path / "again", found)
  return files.read_tensors(tmp_path / "again" / "model.pth")


def test_their_names_and_shapes_are_those_of_the_published_classes(tmp_path):
  def names(net):
    convert.write("restoration", tmp_path / "e", drawn(dict(fields={}) | net))
    found = files.read_tensors(tmp_path / "e" / "model.pth")
    return {n: tuple(found.lazy(n).shape) for n in found}

  found = names({"name": "msrresnet", "scale": 4})
  assert found["upconv2.weight"] == (256, 64, 3, 3) and found["conv_last.weight"] == (3, 64, 3, 3)
  assert found["body.15.conv2.bias"] == (64,) and len(found) == 2 * (5 + 32)
  found = names({"name": "edsr", "scale": 4, "fields": {"global_skip": False}})
  assert {n for n in found if "up" in n} == {f"upsample.{i}.{kind}" for i in (0, 2)
                                             for kind in ("weight", "bias")}
  light = names({"name": "swinir_light", "scale": 1})
  block = "layers.3.residual_group.blocks.5"
  assert light[f"{block}.attn.qkv.weight"] == (180, 60)
  assert light[f"{block}.attn.relative_position_bias_table"] == (225, 6)
  assert light[f"{block}.attn.relative_position_index"] == (64, 64)
  assert light[f"{block}.attn_mask"] == (4, 64, 64) and block[:-1] + "4.attn_mask" not in light
  assert light["conv_before_upsample.0.weight"] == (64, 60, 3, 3)
  assert light["patch_embed.norm.weight"] == (60,)


def test_restormers_names_are_those_of_its_file(tmp_path):
  theirs = restoration_nets.rules(dict(name="restormer", scale=1, fields={}))
  names = {n for rule in theirs for n in rule.theirs}
  assert len(names) == len(theirs) == len(ours.shapes("restore", {"net": {"name": "restormer"}}))
  assert {"patch_embed.proj.weight", "down3_4.body.0.weight", "up2_1.body.0.weight",
          "reduce_chan_level3.weight", "latent.7.attn.temperature", "output.weight",
          "decoder_level1.3.ffn.project_in.weight", "refinement.3.norm2.body.bias"} <= names


def test_an_average_of_the_weights_is_taken_first(tmp_path):
  before = drawn(NETS["msrresnet"])
  convert.write("restoration", tmp_path / "e", before)
  theirs = files.read_tensors(tmp_path / "e" / "model.pth")
  average = {n: theirs.lazy(n) for n in theirs}
  other = {n: np.zeros(x.shape, np.float32) for n, x in average.items()}
  torch_zip.write(tmp_path / "net_g.pth", {"params": other, "params_ema": average})
  cases.assert_same(convert.read(tmp_path / "net_g.pth").params, before.params)
  torch_zip.write(tmp_path / "ema.pth", {"params_ema": average})
  cases.assert_same(convert.read(tmp_path / "ema.pth").params, before.params)


def test_edsr_without_a_note_takes_basicsrs_mean_and_range(tmp_path):
  convert.write("restoration", tmp_path / "e", drawn(NETS["edsr-x4"]))
  noted = convert.read(tmp_path / "e").model["net"]["fields"]
  assert (noted["mean"], noted["img_range"]) == ([0.4, 0.3, 0.2], 100.0)
  (tmp_path / "e" / "model.pth").rename(tmp_path / "EDSR.pth")
  bare = convert.read(tmp_path / "EDSR.pth").model["net"]["fields"]
  assert (bare["mean"], bare["img_range"]) == ([0.4488, 0.4371, 0.4040], 255.0)


@pytest.mark.parametrize("change, message", [
  (lambda t: t.pop("conv_hr.bias"), r"missing in it \(1\):\s+conv_hr.bias \[5\]"),
  (lambda t: t.update({"body.0.bn.weight": np.zeros(5, np.float32)}),
   r"extra in it \(1\):\s+body.0.bn.weight"),
  (lambda t: t.update({"conv_last.weight": np.zeros((1, 5, 3, 3), np.float32)}),
   r"misshapen \(1\):\s+conv_last.weight.*\[3, 5, 3, 3\]"),
])
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, change, message):
  convert.write("restoration", tmp_path / "e", drawn(NETS["msrresnet"]))
  theirs = files.read_tensors(tmp_path / "e" / "model.pth")
  arrays = {n: np.array(theirs[n]) for n in theirs}
  change(arrays)
  torch_zip.write(tmp_path / "m.pth", {"params": arrays})
  with pytest.raises(ConvertError, match=f"(?s){message}"):
    convert.read(tmp_path / "m.pth")


@pytest.mark.parametrize("net, message", [
  (dict(name="edsr", scale=2, fields=dict(width=4, depth=1)), "global_skip=True: edsr .* no skip"),
  (dict(name="msrresnet", scale=1, fields=dict(width=4, depth=1, global_skip=False)),
   "global_skip=False: msrresnet .* a skip"),
  (dict(name="msrresnet", scale=8, fields=dict(width=4, depth=1)), "scale=8: .*2, 3 or 4"),
  (dict(name="swinir", scale=1, fields=dict(width=6, depth=1, blocks=1, mean=[0, 0, 0])),
   "mean=.*takes off"),
  (dict(name="unet", scale=1, fields=dict(width=4)), "unet.*this code base alone"),
])
def test_what_their_classes_cannot_compute_is_refused_and_nothing_is_left(tmp_path, net, message):
  with pytest.raises(ConvertError, match=message):
    convert.write("restoration", tmp_path / "e", drawn(net))
  assert not list(tmp_path.iterdir())
  convert.write("npz", tmp_path / "e", drawn(net))
  assert convert.read(tmp_path / "e").model["net"] == net


def test_of_a_population_one_member_is_written(tmp_path):
  several = drawn(NETS["msrresnet"], seeds=[3, 5])
  with pytest.raises(ConvertError, match="2 networks, of the seeds 3, 5.*--member 0 to 1"):
    convert.write("restoration", tmp_path / "e", several)
  convert.write("restoration", tmp_path / "e", several, member=1)
  found = convert.read(tmp_path / "e")
  cases.assert_same(found.params, {n: x[1] for n, x in several.params.items()})
  assert found.model["seeds"] == [5]
  with pytest.raises(ConvertError, match="member=1: .* one network"):
    convert.write("restoration", tmp_path / "f", drawn(NETS["msrresnet"]), member=1)
  convert.write("npz", tmp_path / "f", several)
  cases.assert_same(convert.read(tmp_path / "f").params, several.params)


def test_a_run_is_exported_with_every_field_of_its_network(tmp_path):
  run = tiny_run.save(tmp_path / "run", name="restore")
  found = weights.read(run)
  assert found.model["net"]["fields"]["global_skip"] is True
  convert.write("npz", tmp_path / "e", found)
  loaded = weights.load(tmp_path / "e")
  assert loaded.task_name == "restore" and loaded.model["net"] == found.model["net"]
  cases.assert_same(trees.flatten(loaded.params), trees.flatten(tiny_run.params(name="restore")))


def test_other_models_are_refused():
  with pytest.raises(ConvertError, match="task 'restore'.*'siglip'"):
    restoration.write(None, cases.weights("siglip", cases.SIGLIP))
  with pytest.raises(ConvertError, match="name='resnet': expected one of msrresnet, edsr"):
    ours.shapes("restore", {"net": {"name": "resnet"}})
  assert len(Tensors(drawn(NETS["msrresnet"]).params)) == 16
