"""How does a multimodal model on this machine describe pictures? By transformers and PyTorch.

Neither is among this project's requirements; both are imported only here, and only when asked for.
"""

import importlib
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from input_pipeline.build.captions.captioner import CaptionerError


class LocalCaptioner:
  """Describes pictures by an image-text-to-text model; see `captioner.Captioner`.

  Args:
    path: directory of the model and its processor, as `save_pretrained` writes them.
    max_tokens: of the answer.
    batch: pictures at a time.
    device: where to run it.

  Raises:
    CaptionerError: a package is missing, or the directory is no such model.
  """

  calls = 1

  def __init__(self, path: str, *, max_tokens: int = 200, batch: int = 8, device: str = "cpu"):
    torch, transformers = (_imported(name) for name in ("torch", "transformers"))
    try:
      self._processor = transformers.AutoProcessor.from_pretrained(path, local_files_only=True)
      self._model = transformers.AutoModelForImageTextToText.from_pretrained(
        path, local_files_only=True, dtype="auto").to(device).eval()
    except (OSError, ValueError, ImportError) as error:
      raise CaptionerError(f"{path}: cannot be loaded as an image-text-to-text model ({error}); "
                           "expected a directory with the model and its processor") from error
    # Answers are read from where the longest prompt ends, so prompts must end together.
    self._processor.tokenizer.padding_side = "left"
    self._no_grad, self._max_tokens, self._device = torch.inference_mode, max_tokens, device
    self.batch = batch
    self.name = f"local {path} max_tokens={max_tokens}"

  def describe(self, images: Sequence[bytes], prompts: Sequence[str]) -> list[str]:
    chats = [_chat(data, prompt) for data, prompt in zip(images, prompts, strict=True)]
    inputs = self._processor.apply_chat_template(
      chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
      padding=True,
    ).to(self._device)
    with self._no_grad():
      out = self._model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)
    answers = out[:, inputs["input_ids"].shape[1] :]
    return self._processor.batch_decode(answers, skip_special_tokens=True)


def _chat(data: bytes, prompt: str) -> list[dict[str, Any]]:
  image = Image.open(io.BytesIO(data)).convert("RGB")
  content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
  return [{"role": "user", "content": content}]


def _imported(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise CaptionerError(
      f"--by local needs the package {name} ({error}); install torch and transformers into this "
      "environment, or serve the model elsewhere and use --by served"
    ) from error
