"""The measured process of `bench mae` on the side of transformers; see `benches/mae.py`.

The pixels are normalised and in the type of the model before the clock starts.
"""

import torchvision_stub  # isort: skip  # noqa: F401  Before anything imports torchvision.

import exchange
import timing
import torch
import transformers


def main(arrays, settings):
  torch.set_num_threads(settings["threads"])
  dtype = getattr(torch, settings["dtype"])
  model = transformers.ViTMAEForPreTraining.from_pretrained(settings["folder"], dtype=dtype).train()
  # The position tables, too, which are frozen there: all gradients are compared.
  model.requires_grad_(True)
  mean, std = (torch.tensor(settings[k])[:, None, None] for k in ("mean", "std"))
  images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous()
  images = ((images / 255 - mean) / std).to(dtype)
  noise = torch.from_numpy(arrays["noise"])

  def step():
    model.zero_grad()
    loss = model(pixel_values=images, noise=noise).loss
    loss.backward()
    return loss.detach()

  loss = step()
  out = timing.measure(step, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
  for name, p in model.named_parameters():
    if p.grad is not None:
      out[f"norm/{name}"] = p.grad.double().norm().numpy()
  return out | {"loss": loss.float().numpy()}


if __name__ == "__main__":
  exchange.serve(main)
