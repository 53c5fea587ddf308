"""What the published PS3 pre-trainings share (Shi et al. 2025, table 13), and how they differ.

Six variants: on SigLIP and SigLIP 2 (So400m/14), and on C-RADIO v2 (L/16), up to 1.5K or 4K. The
weights called PS3-Lang have the sizes of those on SigLIP 2.

The scripts' weight decay of 3e-4 is PyTorch's, which the learning rate multiplies; ours is not
multiplied by it, hence 5e-6 * 3e-4.
"""

import ml_collections

# What PS3 adds to a SigLIP checkpoint: initialised anew when starting from one.
NEW_PARAMETERS = ("img/(prior_prompt|pos_emb_residual_.*|selection_feature_proj/.*)",
                  "img/(highres_selection|prompt_proj_for_highres)/.*", "prompt_proj/.*")

# Both towers of a smoke run: small enough for any CPU, with every part of the real ones.
_TINY = dict(width=32, depth=2, mlp_dim=64, num_heads=2)


_SO400M = dict(variant="So400m/14", posemb_grid=(27, 27), select_layers=(0, 9, 18, 26))
# C-RADIO's trunk has no final norm and crops a table of 256 x 256 positions; an adapter brings its
# tokens to SigLIP So400m's attention pooling.
_CRADIO = dict(
    variant="L/16", posemb_grid=(256, 256), posemb_fit="crop", final_norm=False,
    select_layers=(0, 7, 14, 23), adapter_hidden=1520, adapter_depth=3, pool_width=1152,
    pool_heads=16, pool_mlp_dim=4304, mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711))

# What the model is built on -> lowest scale, image tower, text tower.
BASES = {
    "siglip": (378, _SO400M, dict(vocab_size=32_000, act="gelu")),
    "siglip2": (378, _SO400M, dict(vocab_size=256_000, act="gelu_tanh")),
    "cradio": (384, _CRADIO, dict(vocab_size=32_000, act="gelu")),
}
_ZOOMS = {"1.5k": (1, 2, 4), "4k": (1, 2, 4, 10)}


def published(a, base: str, size: str, *, batch_size: int) -> ml_collections.ConfigDict:
  """The config of a published run.

  Args:
    a: parsed argument with `data`, `tokenizer`, `init`, `batch`, `runlocal`, and for "4k" `tiles`.
    base: one of `BASES`.
    size: "1.5k" or "4k".
    batch_size: global batch of the paper.
  """
  lowest, image, text = BASES[base]
  scales = tuple(lowest * zoom for zoom in _ZOOMS[size])
  c = ml_collections.ConfigDict()
  c.task = "ps3"
  c.batch_size = a.batch or batch_size
  c.total_examples = 75_000_000
  c.seed = 0

  c.input = dict(data=a.data, image_size=scales[-1], tokenizer=a.tokenizer, text_len=64,
                 global_share=0.25, threads=16, prefetch=2)
  c.model = dict(
      image=dict(
          **image, scales=scales, max_select_num=2560, selection_size=1512, act="gelu",
          scan=True, remat_policy="nothing_saveable", dtype="bfloat16"),
      text=dict(variant="So400m", **text, text_len=64, scan=True,
                remat_policy="nothing_saveable", dtype="bfloat16"),
      temperature_init=10.0, bias_init=-10.0, selection_loss="bce",
  )
  if a.init:
    c.init = dict(path=a.init, allow_missing=NEW_PARAMETERS)
  if tiles := a.get("tiles", 0):
    patch = int(image["variant"].split("/")[1])
    _train_on_tiles(c, tiles, patch * _ZOOMS[size][-1], view_size=scales[-2])

  c.lr = 5e-6
  c.schedule = dict(type="cosine", warmup_steps=1500)
  c.optim = dict(
      b1=0.9, b2=0.95, eps=1e-8, weight_decay=5e-6 * 3e-4, clip_norm=None,
      wd_mults=((".*/(kernel|embedding|probe|pos_embedding)", 1.0),
                ("img/pos_emb_residual_.*", 1.0)))
  # 1152, the width, divides by 128 and not by 256: more would leave the parameters whole.
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=128)

  c.log_steps = 20
  c.ckpt_steps = 500
  c.keep_ckpt_percent = 25
  c.evals = dict(regions=dict(
      type="region_retrieval", input=dict(split="val"), batch_size=256, eval_percent=10))

  if a.runlocal:
    c.batch_size = a.batch or 8
    del c.total_examples
    c.total_steps = 2
    c.schedule = dict(type="cosine", warmup_steps=1)
    tiny = tuple(28 * zoom for zoom in _ZOOMS[size])
    layout = dict(posemb_grid=(2, 2))
    if base == "cradio":
      layout = dict(posemb_grid=(24, 24), posemb_fit="crop", final_norm=False, adapter_hidden=24,
                    adapter_depth=1, pool_width=48, pool_heads=3, pool_mlp_dim=64)
    c.input.update(image_size=tiny[-1], text_len=16, threads=2)
    if tiles:
      _train_on_tiles(c, min(tiles, 4), 14 * _ZOOMS[size][-1], view_size=tiny[-2])
    c.model.image = dict(
        **_TINY, **layout, patch_size=14, scales=tiny, max_select_num=16, select_layers=(0, 1),
        selection_size=112, selection_kernel=28, selection_hidden=16, selection_out=16,
        selection_depth=1, scan=True, remat_policy="nothing_saveable")
    c.model.text = dict(**_TINY, **text, text_len=16)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    del c.keep_ckpt_percent
    c.evals.regions.update(batch_size=8, eval_percent=None, selections=("topdown",))
  return c


def _train_on_tiles(c, tiles: int, tile_size: int, view_size: int) -> None:
  """Training reads tiles of the largest scale around the region, and a view for the others.

  Not the release's way: it has whole images. input_pipeline/README.md says what differs.
  """
  c.input.update(tiles=tiles, tile_size=tile_size, view_size=view_size)
  c.model.update(tiles=tiles, view_size=view_size)
