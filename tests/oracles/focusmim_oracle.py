"""What does PyTorch make of FocusMIM's autoencoder? Built here from the paper's description.

Settings: a list of cases, each with `name`, `images` and `mask` (names of arrays (b, y, x, 3) in
0..1 and (b, y, x)) and `dtype`. One with a `load` loads that safetensors file, strictly; one with a
`seed` draws every parameter at random and saves the state dict as `save`. Both give, under the
case's name: `image` and `latent` (b, y, x, c), `loss` and `grad/NAME`. A case "init" gives every
parameter of a fresh model. A case "adam" trains `steps` steps and gives `after/NAME`.
"""

import exchange
import safetensors.torch
import torch
from torch import nn


class Down(nn.Module):
  def __init__(self, c, d, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(c, d, 3, stride=stride, padding=1)
    self.conv2 = nn.Conv2d(d, d, 3, padding=1)
    self.match_dim = nn.Conv2d(c, d, 1, stride=stride)
    self.same = c == d

  def forward(self, x):
    return self.conv2(self.conv1(x).relu()) + (x if self.same else self.match_dim(x))


class Up(nn.Module):
  def __init__(self, c, d, stride):
    super().__init__()
    more = dict(stride=stride, output_padding=stride - 1)
    self.upconv1 = nn.ConvTranspose2d(c, d, 3, padding=1, **more)
    self.upconv2 = nn.ConvTranspose2d(d, d, 3, padding=1)
    self.match_dim = nn.ConvTranspose2d(c, d, 1, **more)
    self.same = c == d

  def forward(self, x):
    return self.upconv2(self.upconv1(x).relu()) + (x if self.same else self.match_dim(x))


class Autoencoder(nn.Module):
  def __init__(self):
    super().__init__()
    down = [(3, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1),
            (64, 128, 2), (128, 128, 1), (128, 128, 1)]
    up = [(128, 128, 1), (128, 128, 1), (128, 64, 2), (64, 64, 1), (64, 64, 1), (64, 32, 2),
          (32, 32, 1), (32, 32, 1), (32, 3, 2)]
    self.encoder = nn.Sequential(*(m for b in down for m in (Down(*b), nn.ReLU())))
    layers = [m for b in up for m in (Up(*b), nn.ReLU())]
    self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())

  def forward(self, x):
    latent = self.encoder(x)
    return self.decoder(latent), latent


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    torch.manual_seed(case.get("seed", 0))
    model = Autoencoder().to(getattr(torch, case.get("dtype", "float32")))
    name = case["name"]
    if case["kind"] == "init":
      out |= {f"{name}/{n}": p.detach().numpy() for n, p in model.named_parameters()}
      continue
    if "load" in case:
      state = safetensors.torch.load_file(case["load"])
      model.load_state_dict({n: x.to(next(model.parameters()).dtype) for n, x in state.items()})
    else:
      with torch.no_grad():
        for p in model.parameters():
          fan = p[0].numel() if p.ndim > 1 else 25
          p.normal_(0, fan**-0.5)
      torch.save(model.state_dict(), case["save"])
    images, mask = (torch.from_numpy(arrays[case[k]]).to(next(model.parameters()).dtype)
                    for k in ("images", "mask"))
    images = images.permute(0, 3, 1, 2).contiguous()
    mask = mask[:, None].expand_as(images)
    if case["kind"] == "adam":
      optimizer = torch.optim.Adam(model.parameters(), lr=case["lr"], weight_decay=case["decay"])
      for _ in range(case["steps"]):
        optimizer.zero_grad()
        ratio(model(images * (1 - mask))[0], images, mask).backward()
        optimizer.step()
      out |= {f"{name}/after/{n}": p.detach().numpy() for n, p in model.named_parameters()}
      continue
    pred, latent = model(images * (1 - mask))
    loss = ratio(pred, images, mask)
    loss.backward()
    to = lambda x: x.detach().permute(0, 2, 3, 1).numpy()
    out |= {f"{name}/image": to(pred), f"{name}/latent": to(latent),
            f"{name}/loss": loss.detach().numpy()}
    out |= {f"{name}/grad/{n}": p.grad.numpy() for n, p in model.named_parameters()
            if p.grad is not None}
  return out


def ratio(pred, target, mask):
  return ((pred - target) ** 2 * mask).sum() / mask.sum()


if __name__ == "__main__":
  exchange.serve(main)
