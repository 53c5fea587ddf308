"""Does ps3-torch load an exported folder, and what does it compute with it? See `harness`.

`settings` lists folders. All tokens of all scales are taken in one look, so that no choice among
equal scores is involved. What was loaded is saved again beside each folder, as "NAME-saved".
"""

import torchvision_stub  # isort: skip  # noqa: F401  Before anything imports torchvision.

import importlib
import pathlib
import sys
import warnings

import exchange
import torch
import torch.nn.functional as F
from PIL import Image

warnings.filterwarnings("ignore")

from ps3 import PS3ImageProcessor, PS3Model, PS3TextModel, PS3VisionModel  # noqa: E402

# Of the training objective; ps3-torch's models have no place for them.
_OBJECTIVE = {"logit_scale", "logit_bias"}


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for folder in map(pathlib.Path, settings):
    name = folder.name
    if (folder / "ps3_custom.py").exists():
      # As a user would, from the folder; each has one of that name.
      sys.path.insert(0, str(folder))
      importlib.import_module("ps3_custom")
      del sys.path[0], sys.modules["ps3_custom"]
    model, info = PS3Model.from_pretrained(folder, output_loading_info=True)
    wrong = info["missing_keys"] + info["mismatched_keys"] + info["error_msgs"]
    wrong += sorted(set(info["unexpected_keys"]) - _OBJECTIVE)
    if wrong:
      raise ValueError(f"{name}: {wrong}")
    model.eval().save_pretrained(f"{folder}-saved")
    parts = {**PS3VisionModel.from_pretrained(folder).state_dict()}
    parts |= PS3TextModel.from_pretrained(folder).state_dict()
    whole = model.state_dict()
    if set(parts) != set(whole) or any(not torch.equal(parts[k], whole[k]) for k in whole):
      raise ValueError(f"{name}: its towers loaded by themselves differ from the whole")

    processor = PS3ImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(image) for image in arrays[f"{name}/image"]]
    pixels = [processor.preprocess(x, return_tensors="pt")["pixel_values"][0] for x in images]
    pixels = torch.stack([torch.as_tensor(x) for x in pixels])
    with torch.no_grad():
      text = model.encode_text(torch.from_numpy(arrays[f"{name}/ids"]))
      vision = model.encode_image(pixels, num_look_close="all", prompt=text.prompt)
    out[f"{name}/text"] = F.normalize(text.pooled_output, dim=-1).numpy()
    out[f"{name}/last"] = vision.last_hidden_state.numpy()
    out[f"{name}/prob"] = vision.selection_probs[0].numpy()
  return out


if __name__ == "__main__":
  exchange.serve(main)
