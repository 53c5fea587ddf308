"""UniQA's adapter and readout, written out in PyTorch from the paper's formulas.

Settings: `ours`, an `adapter.pt` that we wrote, and `theirs`, where to save one. Arrays: `feature`
(b, d), `texts` (g, k, d), `log_scale` (), `score` (b,). Gives of `ours` `score` (b,), `probs`
(b, g, k), `loss`, `grad/NAME`, and after five steps of Adam `after/NAME`; and of a module as torch
begins it `init/NAME`.
"""

import exchange
import torch
from torch import nn


class Adapter(nn.Module):
  def __init__(self, d, levels=5):
    super().__init__()
    fc = nn.Sequential(nn.Linear(d, d // 2, bias=False), nn.ReLU(inplace=True),
                       nn.Linear(d // 2, d, bias=False), nn.ReLU(inplace=True))
    self.adapter = nn.ModuleDict({"fc": fc})
    self.score_level = nn.Parameter(torch.linspace(0.2, 1.0, levels))

  def forward(self, f, texts, log_scale):
    f = f + self.adapter["fc"](f)
    f = f / f.norm(dim=-1, keepdim=True)
    t = texts / texts.norm(dim=-1, keepdim=True)
    p = torch.softmax(log_scale.exp() * torch.einsum("bd,gkd->bgk", f, t), dim=-1)
    return (p * self.score_level).sum(-1).mean(-1), p


def main(arrays, settings):
  torch.set_num_threads(1)
  x = {n: torch.from_numpy(a) for n, a in arrays.items()}
  model = Adapter(x["feature"].shape[1])
  out = {f"init/{n}": p.detach().numpy().copy() for n, p in model.named_parameters()}
  torch.save({"params": model.state_dict()}, settings["theirs"])
  state = torch.load(settings["ours"], weights_only=True)
  assert set(state) == {"params"}
  model.load_state_dict(state["params"], strict=True)
  optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
  for step in range(5):
    optimizer.zero_grad()
    score, p = model(x["feature"], x["texts"], x["log_scale"])
    loss = nn.functional.mse_loss(score, x["score"])
    loss.backward()
    if not step:
      out |= {"score": score.detach().numpy(), "probs": p.detach().numpy(),
              "loss": loss.detach().numpy()}
      out |= {f"grad/{n}": q.grad.numpy().copy() for n, q in model.named_parameters()}
    optimizer.step()
  return out | {f"after/{n}": q.detach().numpy() for n, q in model.named_parameters()}


if __name__ == "__main__":
  exchange.serve(main)
