"""What does transformers' `ViTMAEForPreTraining` make of a folder of weights, what does it save?

Settings: a list of cases. One of the kind "load" reads `folder` and fails if a tensor is missing or
left over; one of the kind "make" builds `model`, draws every parameter at random and saves it there
(with `old` under the names of version 4). Both run on `images` (b, y, x, 3), normalised, with
`noise` (b, n), and give, under the case's name: `logits` (b, n, p), `mask` (b, n), `loss`, and
`grad/NAME` of each parameter. A case of the kind "timm" builds a vision transformer of timm with
`model` arguments, loads the encoder's tensors of `file` into it strictly, and gives its normed
`tokens` on the whole images.
"""

import exchange
import safetensors.torch
import torch
import torchvision_stub  # noqa: F401  Before the libraries that import torchvision.
import transformers
from siglip_oracle import randomise


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    images = torch.from_numpy(arrays[case["images"]]).permute(0, 3, 1, 2).contiguous()
    if case["kind"] == "timm":
      out[f"{case['name']}/tokens"] = timm_tokens(case, images)
      continue
    model = make(case) if case["kind"] == "make" else load(case["folder"])
    found = model(pixel_values=images, noise=torch.from_numpy(arrays[case["noise"]]))
    model.zero_grad()
    found.loss.backward()
    out |= {f"{case['name']}/{key}": getattr(found, key).detach().numpy()
            for key in ("logits", "mask", "loss")}
    for name, p in model.named_parameters():
      # Position tables are frozen there, and differentiated here.
      if p.grad is not None:
        out[f"{case['name']}/grad/{name}"] = p.grad.numpy()
  return out


def make(case):
  model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**case["model"]))
  randomise(model, case["seed"])
  model.save_pretrained(case["folder"])
  return model.eval()


def load(folder):
  model, info = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  transformers.AutoImageProcessor.from_pretrained(folder)
  return model.eval()


def timm_tokens(case, images):
  import timm

  model = timm.create_model(case["architecture"], num_classes=0, **case["model"])
  tensors = safetensors.torch.load_file(case["file"])
  encoder = {n: x for n, x in tensors.items() if "decoder" not in n and n != "mask_token"}
  model.load_state_dict(encoder, strict=True)
  with torch.no_grad():
    return model.eval().forward_features(images).numpy()


if __name__ == "__main__":
  exchange.serve(main)
