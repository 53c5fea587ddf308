"""What does timm make of a fine-tuned encoder, and of an image that RandAugment changes?

Settings: `model`, arguments of a vision transformer of timm, which gets the tensors `model/NAME`
(all of them, strictly); `operations`, (name in timm, argument or None, our name) of RandAugment.
Gives, of `images` (b, y, x, 3), normalised, and `target` (b, n): `logits`, `loss` and `grad/NAME`;
and of `picture` (y, x, 3) uint8 what each operation makes of it, `augmented/NUMBER`, bicubic, and
what torchvision makes of it in 0..1 by each (name, factor) of `jitter`, `jittered/NUMBER`.
"""

import exchange
import numpy as np
import torch
import torchvision_stub  # noqa: F401  Before the libraries that import torchvision.
from PIL import Image


def main(arrays, settings):
  import timm
  from timm.data import auto_augment
  from timm.loss import SoftTargetCrossEntropy

  torch.set_num_threads(1)
  model = timm.create_model("vit_base_patch16_224", **settings["model"])
  tensors = {n.removeprefix("model/"): torch.from_numpy(x) for n, x in arrays.items()
             if n.startswith("model/")}
  model.load_state_dict(tensors, strict=True)
  model.eval()
  logits = model(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2))
  loss = SoftTargetCrossEntropy()(logits, torch.from_numpy(arrays["target"]))
  loss.backward()
  out = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
  out |= {f"grad/{n}": p.grad.numpy() for n, p in model.named_parameters()}
  image = Image.fromarray(arrays["picture"])
  for i, (name, argument, _) in enumerate(settings["operations"]):
    arguments = () if argument is None else (argument,)
    done = auto_augment.NAME_TO_OP[name](
      image, *arguments, resample=Image.Resampling.BICUBIC, fillcolor=tuple(settings["fill"]))
    out[f"augmented/{i}"] = np.asarray(done)
  from torchvision.transforms.v2 import functional

  x = torch.from_numpy(arrays["picture"]).permute(2, 0, 1) / 255
  for i, (name, factor) in enumerate(settings["jitter"]):
    done = getattr(functional, f"adjust_{name}")(x, factor)
    out[f"jittered/{i}"] = done.permute(1, 2, 0).numpy()
  return out


if __name__ == "__main__":
  exchange.serve(main)
