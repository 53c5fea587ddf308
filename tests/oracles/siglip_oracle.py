"""What do transformers, timm and open_clip make of a folder of weights, and which do they save?

Settings: a list of cases. A case of the kind "load" reads `folder` with the library named by
`peer` and fails if a tensor is missing or left over; one of the kind "make" builds `model` there,
draws every parameter at random and saves it to `folder` as the library does. Both then run on the
arrays named by `images` (b, y, x, 3) and `ids` (b, t) and give, under the case's name: `image` and
`text` features, `logits`, `loss`, and `grad/NAME` for each parameter. Without a text tower the loss
is the sum of features times the array `cotangent`. A case of the kind "shapes" builds a published
`model` without its numbers and gives `shape/NAME` of each parameter and what else can be told. A
case of the kind "tokenize" gives `ids` of `texts` by the tokenizer in `folder`.
"""

import json
import os
import pathlib

import exchange
import numpy as np
import safetensors.torch
import torch
import torchvision_stub  # noqa: F401  Before the libraries that import torchvision.


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    peer = PEERS[case["peer"]]
    if case["kind"] == "shapes":
      out |= {f"{case['name']}/{key}": x for key, x in shapes(peer, case["model"]).items()}
      continue
    if case["kind"] == "tokenize":
      out[f"{case['name']}/ids"] = peer.tokenize(case["folder"], case["texts"])
      continue
    model = peer.make(case) if case["kind"] == "make" else peer.load(case["folder"])
    inputs = {key: torch.from_numpy(arrays[case[key]]) for key in ("images", "ids", "cotangent")
              if key in case}
    found = run(peer, model.eval(), inputs)
    out |= {f"{case['name']}/{key}": x.detach().numpy() for key, x in found.items()}
  return out


def run(peer, model, inputs):
  """Features, logits, loss and gradients."""
  images = inputs["images"].permute(0, 3, 1, 2).contiguous()
  out = peer.features(model, images, inputs.get("ids"))
  if "text" in out:
    # Zhai et al. 2023, algorithm 1.
    n = len(out["logits"])
    labels = 2 * torch.eye(n) - torch.ones(n, n)
    out["loss"] = -torch.nn.functional.logsigmoid(labels * out["logits"]).sum() / n
  else:
    out["loss"] = (out["image"] * inputs["cotangent"]).sum()
  model.zero_grad()
  out["loss"].backward()
  grads = {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
  lost = [n for n, p in model.named_parameters() if p.grad is None]
  assert not lost, f"no gradient reaches {lost}"
  return out | grads


def shapes(peer, model):
  """Shapes of a published model's parameters, without memory for them."""
  linspace = torch.linspace
  # timm asks for numbers of it (rates of stochastic depth), which a device without numbers has not.
  torch.linspace = lambda *args, **kw: linspace(*args, **{**kw, "device": "cpu"})
  try:
    with torch.device("meta"):
      built = peer.published(model)
  finally:
    torch.linspace = linspace
  out = {f"shape/{n}": np.array(p.shape, np.int64) for n, p in built.named_parameters()}
  if hasattr(built, "blocks"):
    act = type(built.blocks[0].mlp.act).__name__
    out["act"] = np.array({"GELU": "gelu", "GELUTanh": "gelu_tanh"}[act])
    out["heads"] = np.array(built.blocks[0].attn.num_heads)
  return out


def randomise(model, seed):
  """Every parameter at random, norms around one, products of about unit variance."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in model.named_parameters():
    fan = p[0].numel() if p.ndim > 1 and "embedding" not in name else 11
    mean = 1.0 if "norm" in name and name.endswith("weight") or name == "logit_scale" else 0.0
    mean = 1.0 if ".ln_" in name and name.endswith("weight") else mean
    p.data = mean + torch.randn(p.shape, generator=generator) / fan**0.5
  return model


def as_saved(model, folder, case):
  """Renames what was saved into the older form: a zip file of pickled tensors."""
  if case.get("pickled"):
    (pathlib.Path(folder) / "model.safetensors").unlink()
    torch.save(model.state_dict(), pathlib.Path(folder) / "pytorch_model.bin")
  return model


class Transformers:
  @staticmethod
  def published(model):
    import transformers

    return transformers.SiglipModel(transformers.SiglipConfig(**model))

  @staticmethod
  def make(case):
    import transformers

    cls = getattr(transformers, case["class"])
    model = randomise(cls(cls.config_class(**case["model"])), case["seed"])
    model.save_pretrained(case["folder"], max_shard_size=case.get("shard", "1GB"))
    return as_saved(model, case["folder"], case)

  @staticmethod
  def load(folder):
    import transformers

    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    # The image processor must load as well, and normalise as it was told to.
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = np.full((40, 50, 3), 51, np.uint8)
    got = processor(images=pixels, return_tensors="pt")["pixel_values"]
    said = json.loads((pathlib.Path(folder) / "preprocessor_config.json").read_text())
    if cls.__name__ == "SiglipModel":
      want = (0.2 - torch.tensor(said["image_mean"])) / torch.tensor(said["image_std"])
      side = config["vision_config"]["image_size"]
      assert got.shape == (1, 3, side, side), got.shape
      assert torch.allclose(got, want[:, None, None], atol=1e-5), (got.mean((0, 2, 3)), want)
    return model

  @staticmethod
  def tokenize(folder, texts):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return np.array(tokenizer(texts, padding="max_length", truncation=True)["input_ids"])

  @staticmethod
  def features(model, images, ids):
    name = type(model).__name__
    if name.startswith("Siglip2"):
      inputs = _patches(images, model.config.vision_config.patch_size)
    else:
      inputs = {"pixel_values": images}
    if name.endswith("VisionModel"):
      return {"image": model(**inputs).pooler_output}
    out = model(**inputs, input_ids=ids)
    return {"image": out.vision_model_output.pooler_output,
            "text": out.text_model_output.pooler_output, "logits": out.logits_per_image}


def _patches(images, size):
  """Images as NaFlex models take them."""
  from transformers.models.siglip2 import image_processing_siglip2 as processing

  rows = torch.stack([processing.convert_image_to_patches(image, size) for image in images])
  grid = [images.shape[2] // size, images.shape[3] // size]
  mask = torch.ones(rows.shape[:2], dtype=torch.long)
  return {"pixel_values": rows, "pixel_attention_mask": mask,
          "spatial_shapes": torch.tensor([grid] * len(images))}


class Timm:
  @staticmethod
  def published(model):
    import timm

    return timm.create_model(model, num_classes=0)

  @staticmethod
  def make(case):
    import timm

    model = timm.create_model(case["architecture"], **case["model"])
    randomise(model, case["seed"])
    timm.models.save_for_hf(model, case["folder"], model_args=case["model"],
                            safe_serialization=True)
    return as_saved(model, case["folder"], case)

  @staticmethod
  def load(folder):
    import timm

    file = pathlib.Path(folder) / "model.safetensors"
    try:
      model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (AssertionError, RuntimeError):
      # Before 1.0.16 timm knew no local folders.
      config = json.loads((pathlib.Path(folder) / "config.json").read_text())
      model = timm.create_model(config["architecture"], checkpoint_path=str(file),
                                num_classes=config["num_classes"], **config.get("model_args", {}))
    return _complete(model, file)

  @staticmethod
  def features(model, images, ids):
    del ids
    return {"image": model(images)}


class OpenClip:
  @staticmethod
  def published(model):
    import open_clip

    settings = open_clip.get_model_config(model)
    settings.pop("custom_text")
    return open_clip.model.CustomTextCLIP(**settings)

  @staticmethod
  def make(case):
    import open_clip

    folder = pathlib.Path(case["folder"])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(case["trunk"]))
    settings = {**case["model"], "custom_text": True}
    settings["vision_cfg"] = {**settings["vision_cfg"], "timm_model_name": f"local-dir:{folder}"}
    config = {"model_cfg": settings, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(f"local-dir:{folder}")
    randomise(model, case["seed"])
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model

  @staticmethod
  def load(folder):
    import open_clip

    # The folder's own path is in it: from elsewhere it must load too.
    os.chdir("/")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return _complete(model, pathlib.Path(folder) / "open_clip_model.safetensors")

  @staticmethod
  def tokenize(folder, texts):
    import open_clip

    return open_clip.get_tokenizer(f"local-dir:{folder}")(texts).numpy()

  @staticmethod
  def features(model, images, ids):
    return {"image": model.encode_image(images), "text": model.encode_text(ids),
            "logits": model.get_logits(images, ids)[0]}


def _complete(model, file):
  """Fails unless a model's parameters are those of a file."""
  want, got = safetensors.torch.load_file(file), model.state_dict()
  assert want.keys() == got.keys(), want.keys() ^ got.keys()
  for name, x in want.items():
    assert torch.equal(x.reshape(got[name].shape), got[name]), name
  return model


PEERS = {"transformers": Transformers, "timm": Timm, "open_clip": OpenClip}

if __name__ == "__main__":
  exchange.serve(main)
