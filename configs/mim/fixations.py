"""Masked modelling over several fixations: ViT-B/16 that sees a little of an image, look by look.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/fixations.py:runlocal,data=data/sample --workdir runs/smoke

On a pod (the same command on every host; `data` is a folder made by `input_pipeline.build`):
  python -m big_vision_ext.train --distributed --workdir /checkpoints/fixations --config \
    configs/mim/fixations.py:frame=retinal,policy=surprise,target=residual,data=/data/images

Narrow, on digits over photographs at 96 px, some minutes on a CPU; `bash launch/study.sh fixations`
compares surprise with uniform looks, three seeds each:
  python -m input_pipeline.build --from digits --out data/digits
  python -m big_vision_ext.train --workdir runs/digits_looks \
    --config configs/mim/fixations.py:policy=surprise,data=data/digits,small

Five looks, each of 68 tokens: the whole image at 96 px, and 4 x 4 tokens around the point of gaze
at 192 and at 384 px, of 144 and 576. After each the model predicts what the next look shows anew.

  frame=scene|retinal     places in the image are told, or only movements of the gaze are
  policy=uniform|centre|walk|coverage|saliency|surprise    where to look; "surprise" is learned, and
                          "saliency" wants --config.model.saliency=MAP.npy
  target=norm_pix|pix|residual|features

Source: our own; the question is that of Weiler et al. 2024 ("Masked Image Modeling as a Framework
for Self-Supervised Learning across Eye Movements", arXiv 2404.08526), whose model sees one
fixation; the order of encoding is that of PS3, the predictor that of CrossMAE, rates and schedule
are MAE's. No result of this config is claimed.
"""

import ml_collections

from big_vision_ext.core import config as config_lib


def get_config(arg=None):
  """`arg`: frame=F, policy=P, target=T, data=DIR, batch=N, small, runlocal."""
  a = config_lib.parse_arg(arg, frame="scene", policy="uniform", target="norm_pix",
                           data="data/images", batch=0, small=False, runlocal=False)
  c = ml_collections.ConfigDict()
  c.task = "fixations"
  c.batch_size = a.batch or 4096
  c.total_epochs = 400
  c.seed = 0

  c.input = dict(data=a.data, image_size=384, captions=False, flip=True, crop_scale=(0.2, 1.0),
                 threads=16, prefetch=2)
  c.model = dict(
      image=dict(variant="B/16", image_size=384, scales=(96, 192, 384), frame=a.frame,
                 decoder_width=512, decoder_depth=6, decoder_heads=16, decoder_mlp_dim=2048,
                 surprise_hidden=256, scan=True, remat_policy="nothing_saveable",
                 dtype="bfloat16"),
      windows=(6, 4, 4), looks=5, policy=a.policy, target=a.target)

  c.lr = 1.5e-4 * c.batch_size / 256
  c.schedule = dict(type="cosine", warmup_epochs=40)
  # Decoupled decay that is not multiplied by the rate here: MAE's 0.05 times its rate. Vectors and
  # biases have none.
  c.optim = dict(b1=0.9, b2=0.95, weight_decay=0.05 * c.lr)
  if a.target == "features":
    # A moving average of the encoder, which the task moves.
    c.optim.freeze = ("teacher/.*",)
  c.mesh = dict(data=-1, fsdp=-1, tensor=1, max_fsdp=64)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.evals = dict(looks=dict(type="fixations", input=dict(split="val"), batch_size=1024,
                            eval_percent=10))
  if a.target == "features":
    del c.evals

  if a.small:
    c.batch_size = a.batch or 32
    del c.total_epochs
    c.total_steps = 400
    c.lr = 1e-3
    c.optim.weight_decay = 0.05 * c.lr
    c.schedule = dict(type="cosine", warmup_percent=8)
    # A digit mirrored is none.
    c.input.update(image_size=96, flip=False, resize="fast", threads=2, cache_mb=400)
    c.model.update(windows=(3, 2, 2), looks=4)
    c.model.image = dict(
        width=48, depth=2, mlp_dim=144, num_heads=3, patch_size=8, image_size=96, frame=a.frame,
        scales=(24, 48, 96), decoder_width=32, decoder_depth=1, decoder_heads=2,
        decoder_mlp_dim=96, surprise_hidden=48)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 10
    c.ckpt_steps = 200
    if "evals" in c:
      c.evals.looks = dict(type="fixations", input=dict(split="val"), batch_size=64,
                           policies=("surprise",))
    else:
      c.evals = {}
    c.evals.probe = dict(type="linear_probe", input=dict(split="val"), batch_size=64,
                         l2=(1.0, 0.1, 0.01), max_steps=300, tolerance=1e-4)

  if a.runlocal:
    c.batch_size = a.batch or 8
    if "total_epochs" in c:
      del c.total_epochs
    c.total_steps = 3
    c.lr = 1e-3
    c.optim.weight_decay = 5e-5
    c.schedule = dict(type="cosine", warmup_steps=1)
    c.input.update(image_size=64, threads=2)
    c.model.update(windows=(2, 2, 2), looks=3)
    c.model.image = dict(
        width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=8, image_size=64, frame=a.frame,
        scales=(16, 32, 64), decoder_width=32, decoder_depth=2, decoder_heads=2,
        decoder_mlp_dim=64, surprise_hidden=32)
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.log_steps = 1
    if "evals" in c:
      c.evals = dict(looks=dict(type="fixations", input=dict(split="val"), batch_size=8))
  return c
