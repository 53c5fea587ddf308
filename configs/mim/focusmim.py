"""FocusMIM: which hidden pixels are worth predicting? The eye-movements paper's experiments.

Smoke run (CPU, a minute; needs the sample data, see the README):
  python -m big_vision_ext.train \
    --config configs/mim/focusmim.py:runlocal,data=data/sample --workdir runs/smoke

On STL-10 (one accelerator; 0.2 EFLOP a run), from the files as released:
  python -m input_pipeline.build --from stl10 --images stl10_binary --out data/stl10
  python -m big_vision_ext.train --workdir runs/periphery \
    --config configs/mim/focusmim.py:mask=periphery,data=data/stl10

Without any data, on digits over photographs, on a CPU (narrow, some minutes):
  python -m input_pipeline.build --from digits --out data/digits
  python -m big_vision_ext.train --workdir runs/digits \
    --config configs/mim/focusmim.py:mask=periphery,data=data/digits,small

`mask` is random (patches of 8 px, 60 % of them hidden), periphery (all but a central disc, 80 %),
foveate (blurred ever more with the distance from the centre) or none (a plain autoencoder); `fill`
is what hidden pixels show: mean (the image's mean colour), blur, zero, or blur_as_released (the
public code, whose blur has no effect but on the mean). `crop=False` trains without random crops.
`jitter` varies colours, of input and target alike. `foreground=boxes|mask` weights the loss with
the foreground of the records (`input_pipeline.build --masks DIR` takes masks of other programs),
`attention=foreground` lets a second disc be seen there. `finetune` measures at the end, beside the
readout of the frozen encoder, that of a copy of it which learns along, at a rate of 1e-5.

Source: Weiler, Brucklacher, Pennartz, Bohte 2024, "Masked Image Modeling as a Framework for
Self-Supervised Learning across Eye Movements" (arXiv 2404.08526), and its code: Adam with 1e-8 of
L2 in the gradient, learning rate 1e-4 for periphery and 5e-4 for all others, constant; batch 512,
500 epochs of 100,000 images; crops of 8 to 100 % of the area, no flip. There the last batch of an
epoch is smaller, 196 steps; here batches run on into the next, 195.3. The released run probes the
weights of the epoch with the lowest training loss; here the last ones are probed.

Accuracy of the linear readout that the paper's repository shows, as far as its figure can be read,
%: random 70.3, periphery 68.0, periphery without crops 56.6, random with blur 56.4, foveate 50.0,
periphery with blur 48.9, none 47.0, raw pixels 35.9. No result of this config is claimed.
"""

import ml_collections

from big_vision_ext.core import config as config_lib
from big_vision_ext.core.typed import ConfigError

_FAMILIES = {"random": "random_patches", "periphery": "periphery", "foveate": "foveate",
             "none": "none"}


def get_config(arg=None):
  """`arg`: mask=random|periphery|foveate|none, fill=mean|blur|zero|blur_as_released, ratio=R,
  crop=True|False, attention=none|random|foreground, jitter, foreground=boxes|mask, finetune,
  data=DIR, split=NAME, batch=N, small, runlocal."""
  a = config_lib.parse_arg(
      arg, mask="random", fill="mean", ratio=0.0, crop=True, attention="none", jitter=False,
      foreground="", finetune=False, data="data/stl10", split="", batch=0, small=False,
      runlocal=False)
  if a.mask not in _FAMILIES:
    raise ConfigError(f"config argument mask={a.mask!r}: expected one of {', '.join(_FAMILIES)}")
  c = ml_collections.ConfigDict()
  c.task = "focusmim"
  c.batch_size = a.batch or 512
  c.total_epochs = 500
  c.seed = 0

  # Enlarged bilinearly, as STL-10's crops are: none is larger than 96 px.
  c.input = dict(
      data=a.data, split=a.split or ("train" if a.small else "unlabeled"), image_size=96,
      captions=False, crop_scale=(0.08, 1.0) if a.crop else (1.0, 1.0),
      crop_ratio=(0.75, 4 / 3) if a.crop else (1.0, 1.0), resize="fast", threads=8, prefetch=4)
  if a.jitter:
    c.input.update(jitter=(0.8, 0.8, 0.8, 0.2), jitter_share=0.8)
  if a.foreground:
    c.input.foreground = a.foreground
  ratio = a.ratio or {"periphery": 0.8}.get(a.mask, 0.6)
  c.model = dict(
      image=dict(widths=(32, 64, 128), depth=3, image_size=96),
      mask=dict(family=_FAMILIES[a.mask], ratio=ratio, fill=a.fill, attention=a.attention),
      foreground=bool(a.foreground), pool="flatten",
  )

  c.lr = 1e-4 if a.mask == "periphery" else 5e-4
  c.schedule = dict(type="constant")
  c.optim = dict(name="adam", b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-8,
                 wd_mults=((".*", 1.0),), clip_norm=None)
  c.mesh = dict(data=-1, fsdp=1, tensor=1)

  c.log_steps = 50
  c.ckpt_steps = 1_000
  c.keep_ckpt_percent = 10
  # Over training, the readout and the latents of 10 % of the run; of pixels once, at the end.
  c.evals = dict(
      readout=dict(type="sgd_probe", input=dict(split="val"), batch_size=512, eval_percent=10),
      pixels=dict(type="sgd_probe", input=dict(split="val"), features="pixels", batch_size=512),
      latents=dict(type="latents", input=dict(split="val"), batch_size=512, eval_percent=10))
  if a.finetune:
    c.evals.finetune = dict(type="sgd_finetune", input=dict(split="val"), batch_size=512)

  if a.small:
    c.batch_size = a.batch or 64
    del c.total_epochs
    c.total_steps = 600
    c.model.image.update(widths=(16, 24, 32), depth=2)
    c.lr = 1e-3
    c.log_steps = 10
    c.ckpt_steps = 200
    c.input.update(threads=2, cache_mb=400)
    for name in c.evals:
      c.evals[name].update(batch_size=64)
    for name in ("readout", "latents"):
      del c.evals[name]["eval_percent"]

  if a.runlocal:
    c.batch_size = a.batch or 8
    if "total_epochs" in c:
      del c.total_epochs
    c.total_steps = 3
    c.input.update(split=a.split or "train", threads=2)
    c.model.image.update(widths=(4, 6, 8), depth=2)
    c.log_steps = 1
    del c.keep_ckpt_percent
    # The sample data has no classes.
    kept = {"finetune": dict(c.evals.finetune, batch_size=8)} if a.finetune else {}
    c.evals = dict(latents=dict(type="latents", input=dict(split="val"), batch_size=8), **kept)
  return c
