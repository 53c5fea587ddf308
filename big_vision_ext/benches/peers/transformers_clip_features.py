"""The measured process of `bench clip` on the side of transformers; see `benches/clip.py`.

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
  # The image tower alone; that the folder has a text tower too is no news.
  transformers.logging.set_verbosity_error()
  cls = transformers.CLIPVisionModelWithProjection
  model = cls.from_pretrained(settings["folder"], dtype=dtype).eval()
  mean, std = (torch.tensor(settings[k])[:, None, None] for k in ("mean", "std"))
  images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous()
  images = ((images / 255 - mean) / std).to(dtype)

  @torch.inference_mode()
  def step():
    return model(pixel_values=images).image_embeds

  features = step()
  out = timing.measure(step, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
  return out | {"features": features.float().numpy()}


if __name__ == "__main__":
  exchange.serve(main)
