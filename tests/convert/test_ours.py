import jax
import pytest

from big_vision_ext import tasks
from big_vision_ext.convert import npz, ours, ps3_torch, tables
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors
from big_vision_ext.core import sharding, trees
from tests.convert import cases

SO400M = dict(width=1152, depth=27, mlp_dim=4304, num_heads=16)
ON_SIGLIP = dict(SO400M, patch_size=14, posemb_grid=(27, 27), select_layers=(0, 9, 18, 26))
ON_RADIO = dict(
    width=1024, depth=24, mlp_dim=4096, num_heads=16, patch_size=16, posemb_grid=(256, 256),
    select_layers=(0, 7, 14, 23), final_norm=False, posemb_fit="crop", pool_width=1152,
    pool_heads=16, pool_mlp_dim=4304, adapter_hidden=1520, adapter_depth=3)
# The published models: trunk, scales, vocabulary; tensors, and millions of parameters in all and
# in the vision model, as counted in the released implementation.
PUBLISHED = {
    "1.5K-SigLIP": (ON_SIGLIP, (378, 756, 1512), 32_000, 722, 938.3, 485.9),
    "4K-SigLIP": (ON_SIGLIP, (378, 756, 1512, 3780), 32_000, 723, 1028.2, 575.8),
    "1.5K-SigLIP2": (ON_SIGLIP, (378, 756, 1512), 256_000, 722, 1196.4, 485.9),
    "4K-SigLIP2": (ON_SIGLIP, (378, 756, 1512, 3780), 256_000, 723, 1286.2, 575.8),
    "1.5K-C-RADIOv2": (ON_RADIO, (384, 768, 1536), 32_000, 702, 893.5, 441.6),
    "4K-C-RADIOv2": (ON_RADIO, (384, 768, 1536, 3840), 32_000, 703, 957.2, 505.3),
}


def published(name):
  trunk, scales, vocab, *_ = PUBLISHED[name]
  act = "gelu_tanh" if vocab == 256_000 else "gelu"
  return {"image": dict(trunk, scales=scales, max_select_num=2560, act="gelu"),
          "text": dict(SO400M, vocab_size=vocab, text_len=64, act=act)}


def built(task, model, scan=False):
  """{name: shape} of the parameters that the task itself makes, in the loop layout."""
  layout = {"scan": True} if scan else {}
  task = tasks.make(task, {**model, "image": {**model["image"], **layout},
                           "text": {**model["text"], **layout}})
  batch = task.batch_spec(1)
  params = jax.eval_shape(lambda: sharding.unbox(task.init(jax.random.key(0), _zeros(batch))))
  lazy = {n: Lazy(x.shape, x.dtype, None) for n, x in trees.flatten(params).items()}
  return {n: shape for n, (shape, _) in npz.loop_layout(Tensors(lazy)).specs().items()}


def _zeros(batch):
  return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), batch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_released_number_of_tensors_and_parameters(name):
  shapes = ours.shapes("ps3", published(name))
  assert shapes == built("ps3", published(name), scan=True)
  theirs = {}
  for match in tables.matches(ps3_torch.TABLE, shapes, "ps3_torch"):
    theirs |= match.theirs
  # These two are not in the released model's own state.
  assert theirs.pop("logit_scale") == theirs.pop("logit_bias") == ()
  count = lambda prefix: sum(Lazy(s, "f4", None).size for n, s in theirs.items()
                             if n.startswith(prefix)) / 1e6
  *_, tensors, total, vision = PUBLISHED[name]
  assert len(theirs) == tensors
  assert round(count(""), 1) == total and round(count("vision_model."), 1) == vision


@pytest.mark.parametrize("model", [*cases.PS3.values(), cases.BEYOND], ids=[*cases.PS3, "beyond"])
def test_the_arrays_said_of_a_ps3_model_are_those_that_it_makes(model):
  assert ours.shapes("ps3", model) == built("ps3", model)


@pytest.mark.parametrize("image,text", [
    ({}, {}), ({"pool_type": "gap"}, {"pool_type": "map"}), ({"pool_type": "tok"}, {}),
    ({"rep_size": 48, "final_norm": False}, {}), ({"posemb_type": "sincos2d"}, {"out_dim": 48})])
def test_the_arrays_said_of_a_siglip_model_are_those_that_it_makes(image, text):
  model = {"image": {**cases.SIGLIP["image"], **image}, "text": {**cases.SIGLIP["text"], **text}}
  assert ours.shapes("siglip", model) == built("siglip", model)
  without = {**model, "bias_init": None}
  assert "b" not in ours.shapes("siglip", without)


def test_an_image_tower_may_stand_alone():
  alone = ours.shapes("siglip", {**cases.SIGLIP, "text": None})
  assert alone == {n: s for n, s in ours.shapes("siglip", cases.SIGLIP).items()
                   if n.startswith("img/")}


def test_what_is_not_given_is_named():
  image = {k: v for k, v in cases.SIGLIP["image"].items() if k != "mlp_dim"}
  with pytest.raises(ConvertError, match="mlp_dim is not given"):
    ours.shapes("siglip", {**cases.SIGLIP, "image": image})
  with pytest.raises(ConvertError, match="model.text=None"):
    ours.shapes("ps3", {"image": cases.PS3["named"]["image"], "text": None})
  with pytest.raises(ConvertError, match="task 'mim' has no weight formats"):
    ours.shapes("mim", cases.SIGLIP)
