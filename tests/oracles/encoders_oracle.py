"""What do timm and transformers make of encoders and classifiers, and which do they save?

Settings: a list of cases. One of the kind "load" reads `folder` with the library `peer` and fails
if a tensor is missing or left over; one of the kind "make" builds `model` there (of `class` or
`architecture`), draws every parameter at random and saves it to `folder`. Both run on the array
named `images` (b, y, x, 3), normalised, and give, under the case's name: `out`, logits where there
is a head and normed tokens else, and `grad/NAME` of each parameter, of the sum of `out` times fixed
waves. A case of the kind "wrap" saves the arrays of `file` as facebookresearch/ijepa does, to `to`.
"""

import json
import pathlib

import exchange
import safetensors.torch
import torch
import torchvision_stub  # noqa: F401  Before the libraries that import torchvision.
from siglip_oracle import randomise


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    if case["kind"] == "wrap":
      wrap(case["file"], case["to"])
      continue
    model = (make if case["kind"] == "make" else load)(case).eval()
    images = torch.from_numpy(arrays[case["images"]]).permute(0, 3, 1, 2).contiguous()
    found = run(model, images)
    (found * torch.arange(found.numel()).reshape(found.shape).sin()).sum().backward()
    out[f"{case['name']}/out"] = found.detach().numpy()
    for name, p in model.named_parameters():
      assert p.grad is not None, name
      out[f"{case['name']}/grad/{name}"] = p.grad.numpy()
  return out


def run(model, images):
  if hasattr(model, "forward_features"):
    return model(images) if model.num_classes else model.forward_features(images)
  found = model(pixel_values=images)
  return found.logits if hasattr(found, "logits") else found.last_hidden_state


def make(case):
  if case["peer"] == "timm":
    import timm

    model = randomise(timm.create_model(case["architecture"], **case["model"]), case["seed"])
    timm.models.save_for_hf(model, case["folder"], model_args=case["model"],
                            safe_serialization=True)
    return model
  import transformers

  cls, extra = getattr(transformers, case["class"]), case.get("extra", {})
  model = randomise(cls(cls.config_class(**case["model"]), **extra), case["seed"])
  model.save_pretrained(case["folder"])
  return model


def load(case):
  folder = pathlib.Path(case["folder"])
  config = json.loads((folder / "config.json").read_text())
  if case["peer"] == "timm":
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg.get("label_names") == config.get("label_names")
  else:
    import transformers

    cls, extra = getattr(transformers, config["architectures"][0]), case.get("extra", {})
    model, info = cls.from_pretrained(folder, output_loading_info=True, **extra)
    assert not any(info.values()), info
    transformers.AutoImageProcessor.from_pretrained(folder)
    if "id2label" in config:
      assert model.config.id2label[2] == config["id2label"]["2"]
  want = safetensors.torch.load_file(folder / "model.safetensors")
  for name, x in model.state_dict().items():
    assert torch.equal(want[name], x), name
  assert len(want) == len(model.state_dict())
  return model


def wrap(file, to):
  """Three state dicts as DistributedDataParallel names them, beside what an optimiser keeps."""
  tensors = safetensors.torch.load_file(file)
  named = lambda part: {f"module.{n.partition('.')[2]}": x for n, x in tensors.items()
                        if n.startswith(f"{part}.")}
  saved = {part: named(part) for part in ("encoder", "predictor", "target_encoder")}
  weight = torch.nn.Parameter(torch.ones(3))
  optimizer = torch.optim.AdamW([{"params": [weight], "WD_exclude": True}])
  weight.sum().backward()
  optimizer.step()
  torch.save({**saved, "opt": optimizer.state_dict(), "scaler": None, "epoch": 3, "loss": 0.25,
              "batch_size": 16, "world_size": 1, "lr": 1e-3}, to)


if __name__ == "__main__":
  exchange.serve(main)
