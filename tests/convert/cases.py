"""Small models of every layout with random weights, for tests of formats."""

import ml_dtypes
import numpy as np

from big_vision_ext import convert
from big_vision_ext.convert import ours

_TEXT = dict(width=32, depth=3, mlp_dim=119, num_heads=4, vocab_size=100, text_len=16, act="gelu")
_TEST_VIT = dict(width=64, depth=6, mlp_dim=192, num_heads=2, patch_size=16, act="gelu",
                 scales=[64, 128, 256], max_select_num=40, select_layers=[0, 2, 4, 5],
                 selection_hidden=24, selection_out=16, selection_depth=2)
_SELECTION = dict(max_select_num=12, select_layers=[0, 1], selection_hidden=24, selection_out=16,
                  selection_depth=1)

# Models of task "ps3": one whose trunk timm has a name for, one whose trunk and scoring it has not
# (not one size is equal to another), and the C-RADIO layout.
PS3 = {
    "named": {"image": dict(_TEST_VIT, posemb_grid=[4, 4]), "text": _TEXT},
    "custom": {
        "image": dict(_SELECTION, width=48, depth=2, mlp_dim=100, num_heads=3, patch_size=8,
                      posemb_grid=[5, 5], act="gelu_tanh", scales=[32, 64, 96, 320],
                      selection_size=112, selection_kernel=14),
        "text": dict(_TEXT, act="gelu_tanh", out_dim=48)},
    "radio": {
        "image": dict(_TEST_VIT, posemb_grid=[20, 20], posemb_fit="crop", final_norm=False,
                      pool_width=1152, pool_heads=16, pool_mlp_dim=4304, adapter_hidden=40,
                      adapter_depth=3, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3]),
        "text": dict(_TEXT, out_dim=1152)},
    "no branch": {
        "image": dict(_TEST_VIT, posemb_grid=[4, 4], highres_branch=False), "text": _TEXT},
}
# One that ps3-torch cannot hold: every switch beyond the original.
BEYOND = {
    "image": dict(_TEST_VIT, posemb_grid=[4, 4], low_antialias=True, selection_antialias=True,
                  selection_maps="each", budget_rule="cells", look_policy=True, policy_hidden=12),
    "text": _TEXT}
SIGLIP = {
    "image": dict(width=48, depth=2, mlp_dim=100, num_heads=3, patch_size=8, image_size=40),
    "text": dict(_TEXT, out_dim=48), "bias_init": -10.0}
MAE = {
    "image": dict(width=48, depth=3, mlp_dim=80, num_heads=3, patch_size=8, image_size=40,
                  decoder_width=32, decoder_depth=2, decoder_heads=16, decoder_mlp_dim=56),
    "mask": dict(num_visible=6), "norm_pix": True}

IJEPA = {
    "image": dict(width=48, depth=3, mlp_dim=80, num_heads=3, patch_size=8, image_size=40,
                  pool_type="none"),
    "predictor": dict(width=32, depth=2, mlp_dim=56, num_heads=4),
    "blocks": dict(num_context=6, num_blocks=4, block_size=4)}


def weights(task: str, model: dict, seed: int = 0, dtype: str = "float32") -> convert.Weights:
  """A model in which every value differs from every other."""
  rng = np.random.default_rng(seed)
  types = {"bfloat16": ml_dtypes.bfloat16}
  params = {n: rng.standard_normal(s).astype(types.get(dtype, dtype))
            for n, s in ours.shapes(task, model).items()}
  return convert.Weights(params, task, model)


def assert_same(have, want) -> None:
  """Both have the same names, shapes, dtypes and bits."""
  assert sorted(have) == sorted(want)
  for name in want:
    x, y = np.asarray(have[name]), np.asarray(want[name])
    assert x.dtype == y.dtype and x.shape == y.shape, name
    assert np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes(), name
