"""The measured process of `bench siglip` on the side of open_clip; see `benches/siglip.py`.

The pixels are normalised and in the type of the model before the clock starts.
"""

import torchvision_stub  # isort: skip  # noqa: F401  Before anything imports torchvision.

import exchange
import open_clip
import timing
import torch
from open_clip.loss import SigLipLoss


def main(arrays, settings):
  torch.set_num_threads(settings["threads"])
  dtype = getattr(torch, settings["dtype"])
  model, _ = open_clip.create_model_from_pretrained(f"local-dir:{settings['folder']}")
  model = model.to(dtype).train()
  mean, std = (torch.tensor(settings[k])[:, None, None] for k in ("mean", "std"))
  images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous()
  images = ((images / 255 - mean) / std).to(dtype)
  ids = torch.from_numpy(arrays["text"]).long()
  loss = SigLipLoss()

  def step():
    model.zero_grad()
    zimg, ztxt, scale, bias = model(images, ids)
    value = loss(zimg, ztxt, scale, bias)
    value.backward()
    return {"loss": value.detach(), "zimg": zimg.detach(), "ztxt": ztxt.detach()}

  found = step()
  out = timing.measure(step, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
  for name, p in model.named_parameters():
    out[f"norm/{name}"] = p.grad.double().norm().numpy()
  return out | {name: x.float().numpy() for name, x in found.items()}


if __name__ == "__main__":
  exchange.serve(main)
