"""What does ps3-torch compute? All cases of `test_ps3_parity.py` in one process; see `harness`.

Weights are drawn anew, every tensor of them, and handed over with the results. The package's
latest release lacks a rule that its repository has had since: what rounding leaves of a budget
goes to the last scale. It is added here.
"""

import torchvision_stub  # isort: skip  # noqa: F401  Before anything imports torchvision.

import warnings

import exchange
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")

from ps3 import PS3TextConfig, PS3TextModel, PS3VisionConfig, PS3VisionModel  # noqa: E402


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for name, layout in settings.items():
    for seed in layout["seeds"]:
      vision = PS3VisionModel(PS3VisionConfig(**layout["vision"])).eval()
      text = PS3TextModel(PS3TextConfig(**layout["text"])).eval()
      scalars = {key: torch.zeros(()) for key in ("logit_scale", "logit_bias")}
      scalars = torch.nn.ParameterDict(scalars)
      parts = (vision, text, scalars)
      randomize(parts, seed)
      result = Writer(out, f"{name}/{seed}")
      for key, value in named(parts).items():
        result.put(f"weights/{key}", value)
      looks = budgets_of_head(vision.vision_model, layout["vision"]["max_select_num"])
      for job in layout["jobs"]:
        inputs = Inputs(arrays, f"{name}/{job['images']}", layout, job["count"])
        run(parts, job, inputs, result, looks)
  return out


def randomize(parts, seed):
  """Zeros, ones and 1e-6 that modules start with would hide mistakes."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in named(parts).items():
    norm = name.endswith("weight") and any(x in name for x in ("norm", ".ln_", "stem.1.", ".0.w"))
    norm = norm and p.ndim == 1
    p.data = 0.1 * torch.randn(p.shape, generator=generator) + (1.0 if norm else 0.0)


def named(parts):
  return {name: p for part in parts for name, p in part.named_parameters()}


def budgets_of_head(encoder, max_select_num):
  """Adds the remainder rule and records every look's maps in the list that is returned."""
  whole = encoder.max_select_num_each_scale
  whole[-1] += max_select_num - sum(whole)
  original, looks = encoder.get_selection_maps, []

  def choose(probs, old_selection_maps=None, num_select_token=None, only_select_first_n_scale=None):
    if num_select_token is not None:
      part = [int(x * num_select_token / sum(whole)) for x in whole]
      part[-1] += num_select_token - sum(part)
      encoder.max_select_num_each_scale = part
    maps = original(probs, old_selection_maps, None, only_select_first_n_scale)
    encoder.max_select_num_each_scale = whole
    looks.append(maps)
    return maps

  encoder.get_selection_maps = choose
  return looks


class Inputs:
  """Tensors of one set of images, as the model wants them."""

  def __init__(self, arrays, prefix, layout, count):
    def read(name):
      return torch.from_numpy(arrays[f"{prefix}/{name}"][:count])

    self.ids, self.prompt, self.gt = read("ids"), read("prompt"), read("gt")
    self.is_global = read("is_global")[:, None]
    image = read("image").permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(layout[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    self.pixels = (image - mean) / std


class Writer:
  """Puts tensors, and lists of tensors by number, under names."""

  def __init__(self, out, prefix):
    self.out, self.prefix = out, prefix

  def put(self, name, value):
    if isinstance(value, (list, tuple)):
      for i, one in enumerate(value):
        self.put(f"{name}/{i}", one)
    elif value is not None:
      # A copy: some maps are changed in place later.
      self.out[f"{self.prefix}/{name}"] = value.detach().numpy().copy()


def run(parts, job, inputs, result, looks):
  vision, text, _ = parts
  prefix = f"{job['images']}/{job['name']}"
  looks.clear()
  if job["kind"] == "train":
    return train(parts, inputs, Writer(result.out, f"{result.prefix}/{prefix}"), looks)
  with torch.no_grad():
    if job["kind"] == "text":
      y = text(inputs.ids)
      result.put(f"{prefix}/embedding", F.normalize(y.pooled_output, dim=-1))
      result.put(f"{prefix}/prompt", y.prompt)
    elif job["kind"] == "low":
      low = vision.vision_model.forward_low_res(inputs.pixels, output_hidden_states=True)
      result.put(f"{prefix}/pooled", low["x"])
    else:
      kwargs = dict(job["kwargs"])
      if kwargs.pop("topdown", False):
        kwargs["prompt"] = inputs.prompt
      if kwargs.pop("gt", False):
        kwargs["gt_selection_maps"] = inputs.gt.clone()
      y = vision(inputs.pixels, **kwargs)
      result.put(f"{prefix}/hidden", y.hidden_states)
      result.put(f"{prefix}/last", y.last_hidden_state)
      result.put(f"{prefix}/prob", y.selection_probs)
      result.put(f"{prefix}/looks", looks)


def train(parts, inputs, result, looks):
  """The released objective: sigmoid loss over all pairs, cross-entropy of both scores."""
  vision, text, scalars = parts
  read = text(inputs.ids)
  y = vision(
    inputs.pixels, prompt=read.prompt, gt_selection_maps=inputs.gt.clone(),
    is_global_text=inputs.is_global, pool_gt_token_only=True, output_hidden_states=False,
  )  # fmt: skip
  image, caption = F.normalize(y.pooled_output, dim=-1), F.normalize(read.pooled_output, dim=-1)
  logits = scalars["logit_scale"].exp() * image @ caption.T + scalars["logit_bias"]
  contrastive = -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)
  local, selection = ~inputs.is_global[:, 0], 0.0
  for probs in (y.topdown_selection_probs, y.bottomup_selection_probs):
    for prob in probs:
      area = F.interpolate(inputs.gt[:, None], size=prob.shape[1:], mode="area")[:, 0]
      wanted = (area > 0).float()
      selection += F.binary_cross_entropy(prob[local], wanted[local]) / len(probs)
  for part in parts:
    part.zero_grad()
  (contrastive + selection).backward()
  result.put("pooled", y.pooled_output)
  result.put("forced", y.selection_probs)
  result.put("topdown", y.topdown_selection_probs)
  result.put("bottomup", y.bottomup_selection_probs)
  result.put("looks", looks)
  result.put("contrastive", contrastive)
  result.put("selection", selection)
  for name, p in named(parts).items():
    result.put(f"grad/{name}", torch.zeros_like(p) if p.grad is None else p.grad)


if __name__ == "__main__":
  exchange.serve(main)
