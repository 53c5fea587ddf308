"""What we export, ps3-torch loads and computes alike; what it saves, we read back bit for bit."""

import jax
import numpy as np
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.core import trees
from tests.models import tiny_vit
from tests.oracles import harness, smooth_images

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

_IMAGE = dict(
  width=48, depth=3, mlp_dim=100, num_heads=4, patch_size=8, posemb_grid=(4, 4), act="gelu",
  scales=(32, 64, 128), max_select_num=320, select_layers=(0, 2), selection_size=112,
  selection_kernel=14, selection_hidden=16, selection_out=8, selection_depth=1,
)  # fmt: skip
_TEXT = dict(
  width=32, depth=2, mlp_dim=72, num_heads=2, vocab_size=50, text_len=12, act="gelu", out_dim=48
)
# No timm model has these sizes, and scoring is not at 1512 px: a module beside the weights helps.
MODELS = {
  "custom": dict(image=_IMAGE, text=_TEXT),
  "siglip2": dict(image=_IMAGE, text=_TEXT | dict(act="gelu_tanh", ln_eps=1e-6)),
  "radio": dict(
    image=_IMAGE | dict(
      posemb_grid=(20, 20), posemb_fit="crop", final_norm=False, adapter_hidden=40,
      adapter_depth=2, pool_width=1152, pool_heads=16, pool_mlp_dim=4304,
      mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)),
    text=_TEXT | dict(out_dim=1152)),
  # timm has a name for this one, and the scores are of 1512 px: nothing beside the weights.
  "named": dict(
    image=_IMAGE | dict(
      width=192, depth=12, mlp_dim=768, num_heads=3, patch_size=16, posemb_grid=(14, 14),
      scales=(112, 224), max_select_num=196, selection_size=1512, selection_kernel=28),
    text=_TEXT | dict(out_dim=192)),
}  # fmt: skip


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
  """Per model: the task, its random parameters, the exported folder, and both sides' results."""
  root, arrays, made = tmp_path_factory.mktemp("exports"), {}, {}
  for seed, (name, model) in enumerate(MODELS.items()):
    task = tasks.make("ps3", model)
    side = task.image_size
    rng = np.random.default_rng(seed)
    batch = {
      "image": smooth_images.draw(rng, 2, (side, side)),
      "text": rng.integers(0, 50, (2, 12)).astype(np.int32),
      "box": np.zeros((2, 4), np.float32),
      "is_global": np.zeros(2, bool),
    }
    params = tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), batch), seed)
    weights = convert.Weights(trees.flatten(params), "ps3", model)
    convert.write("ps3_torch", root / name, weights)
    arrays |= {f"{name}/image": batch["image"], f"{name}/ids": np.int64(batch["text"])}
    made[name] = task, params, batch
  theirs = harness.run(
    "ps3_folder.py", env="ps3", arrays=arrays, settings=[str(root / name) for name in MODELS]
  )
  return root, made, theirs


@pytest.mark.parametrize("name", MODELS)
def test_ps3_torch_computes_with_an_export_what_we_do(exchanged, name):
  _, made, theirs = exchanged
  task, params, batch = made[name]
  encode = jax.jit(lambda p, b: task.encode(p, b, num_looks="all"))
  ours = encode(params, {key: batch[key] for key in ("image", "text")})
  for mine, their in (
    (ours["text"], theirs[f"{name}/text"]),
    (ours["last_hidden"], theirs[f"{name}/last"]),
    (ours["prob"][0], theirs[f"{name}/prob"]),
  ):
    # float32 on both sides.
    assert np.abs(mine - their).max() < 1e-5 * np.abs(their).max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("saved", [False, True], ids=["ours", "saved by ps3-torch"])
def test_what_ps3_torch_saves_is_read_back_bit_for_bit(exchanged, name, saved):
  root, made, _ = exchanged
  folder = root / (f"{name}-saved" if saved else name)
  weights = convert.read(folder)
  wanted = trees.flatten(made[name][1])
  if saved:
    wanted = {key: value for key, value in wanted.items() if key not in ("t", "b")}
  assert set(weights.params) == set(wanted)
  for key, value in wanted.items():
    np.testing.assert_array_equal(weights.params[key], value, err_msg=key)
  assert tasks.make(weights.task, weights.model).vision.grids((128, 96))
