"""What the published PS3 pre-trainings on SigLIP So400m/14 share (Shi et al. 2025, table 13).

The scripts' weight decay of 3e-4 is PyTorch's, which the learning rate multiplies; ours is not
multiplied by it, hence 5e-6 * 3e-4.
"""

import ml_collections

# What PS3 adds to a SigLIP checkpoint: initialised anew when starting from one.
NEW_PARAMETERS = ("img/(prior_prompt|pos_emb_residual_.*|selection_feature_proj/.*)",
                  "img/(highres_selection|prompt_proj_for_highres)/.*", "prompt_proj/.*")

# Both towers of a smoke run: small enough for any CPU, with every part of the real ones.
_TINY = dict(width=32, depth=2, mlp_dim=64, num_heads=2)


def so400m(a, *, scales: tuple[int, ...], batch_size: int) -> ml_collections.ConfigDict:
  """The config of a published run.

  Args:
    a: parsed argument with `data`, `tokenizer`, `init`, `batch`, `runlocal`.
    scales: image sizes in pixels, the lowest first.
    batch_size: global batch of the paper.
  """
  c = ml_collections.ConfigDict()
  c.task = "ps3"
  c.batch_size = a.batch or batch_size
  c.total_examples = 75_000_000
  c.seed = 0

  c.input = dict(data=a.data, image_size=scales[-1], tokenizer=a.tokenizer, text_len=64,
                 global_share=0.25, threads=16, prefetch=2)
  c.model = dict(
      image=dict(
          variant="So400m/14", posemb_grid=(27, 27), scales=scales, max_select_num=2560,
          select_layers=(0, 9, 18, 26), selection_size=1512, act="gelu", scan=True,
          remat_policy="nothing_saveable", dtype="bfloat16"),
      text=dict(variant="So400m", vocab_size=32_000, text_len=64, act="gelu", scan=True,
                remat_policy="nothing_saveable", dtype="bfloat16"),
      temperature_init=10.0, bias_init=-10.0, selection_loss="bce",
  )
  if a.init:
    c.init = dict(path=a.init, allow_missing=NEW_PARAMETERS)

  c.lr = 5e-6
  c.schedule = dict(type="cosine", warmup_steps=1500)
  c.optim = dict(
      b1=0.9, b2=0.95, eps=1e-8, weight_decay=5e-6 * 3e-4, clip_norm=None,
      wd_mults=((".*/(kernel|embedding|probe|pos_embedding)", 1.0),
                ("img/pos_emb_residual_.*", 1.0)))
  c.mesh = dict(data=1, fsdp=-1, tensor=1)

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
    zoom = [s // scales[0] for s in scales]
    tiny = tuple(28 * z for z in zoom)
    c.input.update(image_size=tiny[-1], text_len=16, threads=2)
    c.model.image = dict(
        **_TINY, patch_size=14, posemb_grid=(2, 2), scales=tiny, max_select_num=16,
        select_layers=(0, 1), selection_size=112, selection_kernel=28, selection_hidden=16,
        selection_out=16, selection_depth=1, scan=True, remat_policy="nothing_saveable")
    c.model.text = dict(**_TINY, vocab_size=32_000, text_len=16, act="gelu")
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    del c.keep_ckpt_percent
    c.evals.regions.update(batch_size=8, eval_percent=None, selections=("topdown",))
  return c
