"""What should a person know who finds exported weights in a folder? Its README."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from big_vision_ext.convert import ours

TITLES = {
    "npz": "big_vision's naming, one npz file", "ps3_torch": "ps3-torch (PyTorch)",
    "transformers": "transformers (PyTorch)", "mae": "facebookresearch/mae (PyTorch)",
    "ijepa": "facebookresearch/ijepa (PyTorch)",
    "focusmim": "RobinWeiler/FocusMIM (PyTorch)", "timm": "timm (PyTorch)",
    "open_clip": "open_clip (PyTorch)", "openai_clip": "openai/CLIP (PyTorch)",
    "uniqa": "UniQA's adapter (PyTorch)",
    "restoration": "BasicSR, SwinIR or Restormer (PyTorch)"}
_TASKS = {
    "siglip": "a SigLIP model: an image tower and a text tower trained with the sigmoid loss "
              "(arXiv 2303.15343)",
    "clip": "a CLIP model: an image tower and a text tower trained to find each other's partner in "
            "a batch (arXiv 2103.00020)",
    "ps3": "a PS3 model: a vision encoder that sees the whole image at low resolution and selected "
           "patches at high resolution, with its text tower (arXiv 2503.19903)",
    "mae": "a masked autoencoder: a vision transformer that encodes the visible patches of an "
           "image and a decoder that predicts the others (arXiv 2111.06377)",
    "focusmim": "a FocusMIM model: a convolutional autoencoder that predicts hidden pixels (arXiv "
                "2404.08526)",
    "classify": "an image classifier: a vision transformer with a linear head",
    "ijepa": "an I-JEPA model: a vision transformer, the teacher that follows it, and a predictor "
             "of the teacher's features of hidden blocks (arXiv 2301.08243)",
    ours.ENCODER: "the encoder of a masked model or of a classifier: a vision transformer without "
                  "a head",
    "cdasr": "a super-resolution network steered by what a frozen encoder sees of a picture (arXiv "
             "2505.12391)",
    "restore": "an image restoration network: it makes a better picture of a picture",
    "quality": "an adapter that rates the quality or the aesthetics of pictures by the features "
               "of a frozen CLIP (arXiv 2406.01069)"}


def text(format: str, weights: Any, folder: pathlib.Path, module: Any) -> str:
  """The card of an export, Markdown.

  Args:
    format: its name.
    weights: the `Weights` that were written.
    folder: where the files are; they are listed with their sizes.
    module: the format's module; its `usage(weights)` tells how to load the folder.
  """
  image, meta = weights.model.get("image", {}), weights.meta
  kind = f" (the {image['timm_name']} trunk)" if image.get("timm_name") else ""
  parts = [
      f"# {meta.get('name') or 'Exported weights'}",
      f"This is {_TASKS.get(weights.task, 'a model')}{kind}, in the format of {TITLES[format]}, "
      f"written by big_vision_ext. {_count(weights.params)} parameters, "
      f"{_dtypes(weights.params)}.",
      "## Load", f"`E` is this folder.\n\n{module.usage(weights)}",
      "## Preprocessing", _preprocessing(weights),
      "## Where it comes from", _origin(meta),
      "## Results", _results(meta.get("metrics")),
      "## Licence", _licences(meta),
      "## Model", "```json\n" + json.dumps(
          {"task": weights.task, "model": weights.model}, indent=1, default=str) + "\n```",
      "## Files", "\n".join(f"- `{p.relative_to(folder)}`, {p.stat().st_size:,} bytes"
                            for p in sorted(folder.rglob("*")) if p.is_file()),
  ]
  return "\n\n".join(parts) + "\n"


def _count(params: Any) -> str:
  total = 0
  for shape, _ in params.specs().values():
    n = 1
    for size in shape:
      n *= size
    total += n
  return f"{total:,}"


def _dtypes(params: Any) -> str:
  return ", ".join(sorted({str(dtype) for _, dtype in params.specs().values()}))


def _preprocessing(weights: Any) -> str:
  if weights.task in ("restore", "cdasr"):
    return ("Images: RGB of any size, divided by 255. What comes out is as many times larger as "
            "the model's `scale` says, in 0..1, not clipped.")
  seen, image = weights.input, weights.model.get("image", {})
  size = seen.get("image_size") or (image.get("scales") or [image.get("image_size")])[-1]
  height, width = size if isinstance(size, Sequence) else (size, size)
  mean, std = (seen.get(k, weights.model.get(k, image.get(k, 0.5))) for k in ("mean", "std"))
  ways = {"bicubic": "antialiased bicubic", "fast": "area averaging when it gets smaller"}
  resize = ways.get(seen.get("resize", "bicubic"), seen.get("resize"))
  how = f"resized to {width} x {height} px without keeping the aspect ratio ({resize})"
  if weights.task == "clip":
    how = f"the shorter side resized to {height} px ({resize}), the middle {width} x {height} px"
  if middle := seen.get("eval_crop"):
    how = (f"the square in the middle whose side is {middle:g} of the shorter side, resized to "
           f"{width} x {height} px ({resize})")
  lines = [
      f"Images: RGB, {how}, divided by 255, then (x - mean) / std with mean {_short(mean)} and std "
      f"{_short(std)}."]
  if image.get("scales"):
    lines.append(f"The model makes its scales {list(image['scales'])} px of that itself.")
  if names := seen.get("classes"):
    listed = ", ".join(map(str, names)) if len(names) <= 100 else "listed in export.json"
    lines.append(f"Classes, in the order of the scores: {listed}.")
  length = (weights.model.get("text") or {}).get("text_len")
  if length:
    clean = ", in the canonical form of `input_pipeline.text.canonicalize` (lower case, no "
    clean = clean + "punctuation)" if seen.get("canonicalize") else ""
    name = seen.get("tokenizer") or seen.get("tokenizer_name") or "unknown"
    rest = ("the end of sequence included, always padded to the full length (padding is attended "
            "to)")
    if weights.task == "clip":
      rest = "start and end included, then padding, which has no influence"
    lines.append(f"Texts{clean}: {length} ids of the tokenizer `{name}`, {rest}.")
  return "\n\n".join(lines)


def _origin(meta: Mapping[str, Any]) -> str:
  lines = [f"- {name}: {meta[key]}" for name, key in (
      ("source", "source"), ("step", "step"), ("trained on", "data"),
      ("examples seen", "examples"), ("adapted", "adapted"), ("precision", "precision"))
      if meta.get(key) not in (None, "")]
  for start in meta.get("init") or ():
    lines.append(f"- began from: {start.get('path')} ({start.get('format', 'unknown format')})")
  return "\n".join(lines) or "Unknown."


def _results(metrics: Mapping[str, Any] | None) -> str:
  if not metrics:
    return "None recorded."
  rows = [f"| {k} | {v:.4g} |" for k, v in metrics.items() if isinstance(v, (int, float))]
  return "\n".join(["| measure | value |", "|---|---|", *rows])


def _licences(meta: Mapping[str, Any]) -> str:
  lines = []
  if meta.get("licence") not in (None, "", "unknown"):
    lines.append(f"- these weights: {meta['licence']}")
  for start in meta.get("init") or ():
    lines.append(f"- what they began from, {start.get('path')}: {start.get('licence', 'unknown')}")
  if not lines and meta.get("from_scratch"):
    return ("These weights began from random values, not from others': whoever trained them, on "
            "the data above, states their terms.")
  if not lines:
    return ("Unknown: nothing is recorded of what these weights began from. Whoever passes them on "
            "states the terms.")
  return "\n".join(lines) + ("\n\nTerms of weights usually hold for what is trained from them. "
                             "SigLIP and SigLIP 2 were published under Apache-2.0, OpenAI's CLIP "
                             "under MIT; NVIDIA's PS3 weights under a licence for non-commercial "
                             "research, MAE's and I-JEPA's under CC-BY-NC 4.0; UniQA's repository "
                             "carries licences for non-commercial use (S-Lab, CC BY-NC-SA).")


def _short(values: Any) -> str:
  return str([round(float(v), 4) for v in values]) if isinstance(values, Sequence) else str(values)
