"""The measured process of `bench ps3` on the side of ps3-torch; see `benches/ps3.py`.

The pixels are normalised and in the type of the model before the clock starts, as its processor
hands them over, and only the last block's outputs are asked for. Before the timed runs one run
takes the tokens that ours took, for comparison: which of equally scored ones it takes is arbitrary.
"""

import torchvision_stub  # isort: skip  # noqa: F401  Before anything imports torchvision.

import importlib
import pathlib
import sys
import warnings

import exchange
import numpy as np
import timing
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")

from ps3 import PS3VisionModel  # noqa: E402

# As on our side.
_TEMPERATURE, _BIAS = 10.0, -10.0


def main(arrays, settings):
  torch.set_num_threads(settings["threads"])
  dtype = getattr(torch, settings["dtype"])
  folder = pathlib.Path(settings["folder"])
  if (folder / "ps3_custom.py").exists():
    sys.path.insert(0, str(folder))
    importlib.import_module("ps3_custom")
  model = PS3VisionModel.from_pretrained(folder, torch_dtype=dtype).eval()
  assert all(p.dtype == dtype for p in model.parameters())
  model.vision_model.num_hidden_layers_to_return = 1
  pixels = torch.from_numpy(arrays.pop("image")).permute(2, 0, 1)[None].to(torch.float32)
  for i in range(3):
    pixels[:, i] = (pixels[:, i] / 255 - settings["mean"][i]) / settings["std"][i]
  pixels = pixels.to(dtype)
  if settings["mode"] == "train":
    side = pixels.shape[-2:]
    given = {k: torch.from_numpy(arrays[k][None]).to(dtype) for k in ("prompt", "text")}
    gt = torch.from_numpy(_paint(arrays["box"], side)[None]).to(dtype)
    run = lambda: train(model, pixels, given, gt)
  else:
    run = lambda: encode(model, pixels, settings["looks"])
  found = _with_tokens_of_ours(model.vision_model, arrays, run)
  norms = {}
  if settings["mode"] == "train":
    # Now: the timed runs take other tokens. What the pass leaves out has None: a zero.
    norms = {f"norm/{name}": 0.0 if p.grad is None else p.grad.double().norm().numpy()
             for name, p in model.named_parameters()}
  out = timing.measure(run, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
  return out | norms | {name: x.float().numpy() for name, x in found.items()}


@torch.no_grad()
def encode(model, pixels, looks):
  return {"last": model(pixels, num_look_close=looks).last_hidden_state}


def train(model, pixels, given, gt):
  """The released objective on one local caption, with the gradient of every parameter."""
  model.zero_grad()
  y = model(
    pixels, prompt=given["prompt"], gt_selection_maps=gt.clone(),
    is_global_text=torch.zeros(1, 1, dtype=torch.bool), pool_gt_token_only=True,
    output_hidden_states=False,
  )  # fmt: skip
  image = F.normalize(y.pooled_output, dim=-1)
  loss = -F.logsigmoid(_TEMPERATURE * image @ given["text"].T + _BIAS).sum()
  for probs in (y.topdown_selection_probs, y.bottomup_selection_probs):
    for prob in probs:
      area = F.interpolate(gt[:, None], size=prob.shape[1:], mode="area")[:, 0]
      # In float32 whatever the model's type, as ours.
      where = F.binary_cross_entropy(prob.float(), (area > 0).float())
      loss = loss + where / len(probs)
  loss.backward()
  return {"pooled": y.pooled_output.detach(), "loss": loss.detach()}


def _with_tokens_of_ours(encoder, arrays, run):
  """Runs once with the choices `look/{look}/{scale}`; the timed runs choose for themselves."""
  original, look = encoder.get_selection_maps, 0

  def choose(probs, *args, **kwargs):
    nonlocal look
    maps = [torch.zeros_like(p) for p in probs]
    for i, chosen in enumerate(maps):
      chosen.view(-1)[torch.from_numpy(arrays[f"look/{look}/{i}"][0].astype(np.int64))] = 1
    look += 1
    return maps

  encoder.get_selection_maps = choose
  try:
    return run()
  finally:
    encoder.get_selection_maps = original


def _paint(box, side):
  """A map of the pixels of a box in whole pixels, both ends included, as its data loader paints."""
  x0, y0, x1, y1 = (int(v) for v in box)
  out = np.zeros(side, np.float32)
  out[y0 : y1 + 1, x0 : x1 + 1] = 1
  return out


if __name__ == "__main__":
  exchange.serve(main)
