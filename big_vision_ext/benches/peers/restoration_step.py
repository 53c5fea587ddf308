"""The measured process of `bench restore` on the side of PyTorch; see `benches/restore.py`."""

import exchange
import restoration
import timing
import torch


def main(arrays, settings):
  torch.set_num_threads(settings["threads"])
  dtype = getattr(torch, settings["dtype"])
  model = restoration.KINDS[settings["kind"]](**settings["sizes"])
  model.load_state_dict(torch.load(settings["file"], weights_only=True)["params"])
  model = model.to(dtype)
  image, degraded = (
    torch.from_numpy(arrays[k]).permute(0, 3, 1, 2).contiguous().to(dtype) / 255
    for k in ("image", "degraded"))
  if settings["mode"] == "infer":
    with torch.inference_mode():
      run = lambda: model(degraded)
      found = run()
      out = timing.measure(run, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
    return out | {"restored": restoration.last(found).float().numpy()}

  def step():
    model.zero_grad()
    loss = (model(degraded) - image).abs().mean()
    loss.backward()
    return loss.detach()

  loss = step()
  out = timing.measure(step, settings["repeats"]) | {"peak_gib": timing.peak_gib()}
  for name, p in model.named_parameters():
    out[f"norm/{name}"] = p.grad.double().norm().numpy()
  return out | {"loss": loss.float().numpy()}


if __name__ == "__main__":
  exchange.serve(main)
