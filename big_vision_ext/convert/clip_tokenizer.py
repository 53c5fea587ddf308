"""Which of CLIP's vocabularies lies in a folder, and how does that of a run get into one?

Its forms and how it is read: `input_pipeline/clip_tokenizer.py`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import files
from input_pipeline import clip_tokenizer, text

KIND = "clip"
FILE = "tokenizer.json"


def find(folder: pathlib.Path) -> dict[str, Any]:
  """The vocabulary in a folder as keys of `Weights.input`; {} if there is none of CLIP's."""
  try:
    file = clip_tokenizer.find(str(folder.absolute()))
    clip_tokenizer.read_vocabulary(str(file))
  except text.TokenizerError:
    return {}
  return {"tokenizer": f"{KIND}:{file}"}


def path_of(settings: Mapping[str, Any]) -> str | None:
  """The vocabulary's file or folder of a run with such a tokenizer, if it is there."""
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  path = rest.partition("?")[0]
  return path if kind == KIND and path and pathlib.Path(path).exists() else None


def write(folder: pathlib.Path, settings: Mapping[str, Any]) -> bool:
  """Writes the files that transformers' `CLIPTokenizer` reads, if the run has such a tokenizer.

  Args:
    folder: made if needed.
    settings: `Weights.input`: tokenizer ("clip:PATH") and text_len.

  Returns:
    Whether there was one to write.
  """
  path = path_of(settings)
  if path is None:
    return False
  vocab, merges = clip_tokenizer.read_vocabulary(path)
  lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
  start, end = clip_tokenizer.START, clip_tokenizer.END
  special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
  config = {"tokenizer_class": "CLIPTokenizer", **special, "do_lower_case": True,
            "model_max_length": settings.get("text_len", 77), "errors": "replace",
            "add_prefix_space": False, "clean_up_tokenization_spaces": False}
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in (
      (FILE, clip_tokenizer.to_json(path)), ("vocab.json", json.dumps(vocab, ensure_ascii=False)),
      ("merges.txt", "\n".join(lines)), ("special_tokens_map.json", json.dumps(special, indent=2)),
      ("tokenizer_config.json", json.dumps(config, indent=2))):
    files.write_text(folder / name, f"{content}\n")
  return True


def usage(settings: Mapping[str, Any], code: str) -> tuple[str, str]:
  """For a card: `code`, which loads the tokenizer, if there is one, and a sentence if not."""
  if path_of(settings):
    return code, ""
  return "", ("\nNo tokenizer is in this folder: that of the texts is "
              f"`{settings.get('tokenizer') or 'CLIP with its own vocabulary'}`.\n")
