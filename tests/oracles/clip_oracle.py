"""What do transformers and open_clip make of a folder of CLIP's weights, and what do they save?

Settings: a list of cases. One of the kind "load" reads `folder` with the library named by `peer`
and fails if a tensor is missing or left over; one of the kind "make" builds `model`, draws every
parameter at random and saves it to `folder` as the library does: with `file` as one file of
`torch.save` or, if `traced`, of `torch.jit.save`. Both run on `images` (b, y, x, 3), normalised,
and `ids` (b, t) and give, under the case's name: `image_features` and `text_features`, `logits`,
`loss` and `grad/NAME` of each parameter. With `half`, what is saved is what OpenAI's rounding makes
of the weights, and nothing is run. A case of the kind "shapes" builds a published `model` and gives
`shape/NAME` of each parameter; one of the kind "resize" fits the position table `table` into a
`model` as open_clip does, and gives `table`; one of the kind "tokenize" gives the `ids` of `texts`
by open_clip's tokenizer, those by the one in `folder` (`local`), and those of `plain` ones by
`transformers`; one of the kind "vocabulary" gives the `path` of open_clip's.
"""

import json
import pathlib

import exchange
import numpy as np
import safetensors.torch
import torch
import torchvision_stub  # noqa: F401  Before the libraries that import torchvision.
from siglip_oracle import randomise

KINDS = {}


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    given = {k: arrays[case[k]] for k in ("images", "ids", "table") if k in case}
    out |= {f"{case['name']}/{key}": x for key, x in KINDS[case["kind"]](case, given).items()}
  return out


def kind(function):
  KINDS[function.__name__] = function
  return function


@kind
def load(case, given):
  folder = case["folder"]
  if case["peer"] == "transformers":
    import transformers

    model, info = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=np.full((30, 70, 3), 51, np.uint8), return_tensors="pt")
    side = model.config.vision_config.image_size
    assert pixels["pixel_values"].shape == (1, 3, side, side)
    want = (0.2 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    assert torch.allclose(pixels["pixel_values"][0], want[:, None, None], atol=1e-5)
  else:
    import open_clip

    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    want = safetensors.torch.load_file(pathlib.Path(folder) / "open_clip_model.safetensors")
    got = model.state_dict()
    assert want.keys() == got.keys(), want.keys() ^ got.keys()
    assert all(torch.equal(x, got[n]) for n, x in want.items())
  return run(model.eval(), given)


@kind
def make(case, given):
  folder = pathlib.Path(case["folder"])
  folder.mkdir(parents=True)
  if case["peer"] == "transformers":
    import transformers

    model = randomise(transformers.CLIPModel(transformers.CLIPConfig(**case["model"])),
                      case["seed"]).eval()
    model.save_pretrained(folder)
    if case.get("pickled"):
      # What versions before 4.31 wrote.
      (folder / "model.safetensors").unlink()
      state = dict(model.state_dict())
      for tower, count in (("text", 10), ("vision", 10)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
      torch.save(state, folder / "pytorch_model.bin")
    return run(model, given)
  model = randomise(native(case["model"]), case["seed"]).eval()
  if case.get("half"):
    from open_clip import model as library

    library.convert_weights_to_lp(model, dtype=torch.float16)
    torch.save(model.state_dict(), folder / "clip.pt")
    return {}
  if case.get("traced"):
    images, ids = tensors(given)
    # Tracing it once more, as the check would, names the modules anew, and finds them different.
    torch.jit.save(torch.jit.trace(model, (images, ids), check_trace=False), folder / "clip.pt")
  elif case.get("file"):
    state = {f"module.{n}": x for n, x in model.state_dict().items()}
    torch.save({"epoch": 5, "state_dict": state}, folder / "clip.pt")
  else:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": case["model"]}))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
  return run(model, given)


@kind
def shapes(case, given):
  import open_clip

  with torch.device("meta"):
    built = native(open_clip.get_model_config(case["model"]))
  return {f"shape/{n}": np.array(p.shape, np.int64) for n, p in built.named_parameters()}


@kind
def resize(case, given):
  from open_clip import model as library

  built = native(case["model"])
  state = {"visual.positional_embedding": torch.from_numpy(given["table"])}
  library.resize_pos_embed(state, built)
  return {"table": state["visual.positional_embedding"].numpy()}


@kind
def tokenize(case, given):
  import open_clip
  import transformers

  folder = case["folder"]
  own = open_clip.get_tokenizer("ViT-B-16-quickgelu")
  fast = transformers.AutoTokenizer.from_pretrained(folder)
  limits = dict(padding="max_length", truncation=True, max_length=77)
  return {
    "ids": own(case["texts"]).numpy(),
    "local": open_clip.get_tokenizer(f"local-dir:{folder}")(case["texts"]).numpy(),
    "transformers": np.array(fast(case["plain"], **limits)["input_ids"]),
  }


@kind
def vocabulary(case, given):
  from open_clip import tokenizer

  return {"path": np.array(str(tokenizer.default_bpe()))}


def native(settings):
  """A model of open_clip's own towers."""
  from open_clip import model as library

  settings = dict(settings)
  cls = library.CustomTextCLIP if settings.pop("custom_text", False) else library.CLIP
  return cls(**settings)


def tensors(given):
  return (torch.from_numpy(given["images"]).permute(0, 3, 1, 2).contiguous(),
          torch.from_numpy(given["ids"]).long())


def run(model, given):
  """Features, logits, loss and gradients."""
  images, ids = tensors(given)
  if type(model).__name__ == "CLIPModel":
    image, text = (getattr(x, "pooler_output", x) for x in (
      model.get_image_features(images), model.get_text_features(ids)))
    found = model(input_ids=ids, pixel_values=images, return_loss=True)
    logits, loss = found.logits_per_image, found.loss
  else:
    from open_clip.loss import ClipLoss

    image, text = model.encode_image(images), model.encode_text(ids)
    zimg, ztxt, scale = model(images, ids)[:3]
    logits = scale * zimg @ ztxt.T
    loss = ClipLoss()(zimg, ztxt, scale)
  model.zero_grad()
  loss.backward()
  grads = {f"grad/{n}": p.grad for n, p in model.named_parameters()}
  assert all(g is not None for g in grads.values())
  out = {"image_features": image, "text_features": text, "logits": logits, "loss": loss}
  return {name: x.detach().numpy() for name, x in (out | grads).items()}


if __name__ == "__main__":
  exchange.serve(main)
