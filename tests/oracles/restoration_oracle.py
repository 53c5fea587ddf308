"""What does PyTorch make of MSRResNet, EDSR, SwinIR and Restormer?

The networks are in `big_vision_ext/benches/peers/restoration.py`, built from their descriptions.

Settings: a list of cases, each with `name`, `kind` of network, its `sizes`, `images` and `weights`
(names of arrays: pictures (b, y, x, 3), and what outputs are multiplied with before they are added
up to a loss). One with a `load` loads that file, strictly; one with a `seed` draws every parameter
at random and saves `{"params": state dict}` as `save`. Both give, under the case's name, `image`
(b, y, x, 3) and `grad/NAME` of every parameter, computed in float64.
"""

import exchange
import restoration
import torch


def draw(model):
  """Every parameter, norms and temperatures around one, of sizes that keep signals alive."""
  for name, p in model.named_parameters():
    if p.ndim == 1 and ("norm" in name and "weight" in name) or "temperature" in name:
      p.normal_(1, 0.2)
    else:
      p.normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.2)


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    name = case["name"]
    model = restoration.KINDS[case["kind"]](**case["sizes"])
    if "load" in case:
      model.load_state_dict(torch.load(case["load"], weights_only=True)["params"])
    else:
      torch.manual_seed(case["seed"])
      with torch.no_grad():
        draw(model)
      torch.save({"params": model.state_dict()}, case["save"])
    model.double()
    image, weights = (torch.from_numpy(arrays[case[k]]).double() for k in ("images", "weights"))
    found = restoration.last(model(restoration.first(image)))
    (found * weights).sum().backward()
    out[f"{name}/image"] = found.detach().numpy()
    out |= {f"{name}/grad/{n}": p.grad.numpy() for n, p in model.named_parameters()}
  return out


if __name__ == "__main__":
  exchange.serve(main)
