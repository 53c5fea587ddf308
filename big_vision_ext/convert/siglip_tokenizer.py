"""Which tokenizer lies in a folder of SigLIP's, and how does that of a run get into one?

SigLIP's own is a SentencePiece model, `spiece.model`; SigLIP 2 and others have a `tokenizer.json`
(see `tokenizer_files.py`). The ids that end and pad a text stand in the text tower's config.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import files, tokenizer_files

_KINDS = {"spiece.model": "sentencepiece", "tokenizer.json": "tokenizers"}


def find(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """The tokenizer in a folder as keys of `Weights.input`; {} if there is none.

  The ids that end and pad a text are those of the tokens that tokenizer_config.json names, else
  those of the model's config, of which published ones name ids beyond the vocabulary.

  Args:
    folder: where to look.
    config: of the text tower: vocab_size, and perhaps pad_token_id and eos_token_id.
  """
  for file, kind in _KINDS.items():
    path = folder.absolute() / file
    if not path.is_file():
      continue
    said = folder / "tokenizer_config.json"
    said = files.read_json(said) if said.is_file() else {}
    ids = {}
    for name in ("pad", "eos"):
      token, given = said.get(f"{name}_token"), config.get(f"{name}_token_id")
      if token is not None:
        # Tokens with settings of their own are written as objects.
        token = token["content"] if isinstance(token, Mapping) else token
        ids[name] = _id_of(path, kind, token)
      if ids.get(name) is None and isinstance(given, int) and 0 <= given < config["vocab_size"]:
        ids[name] = given
    options = ",".join(f"{name}={value}" for name, value in ids.items() if value is not None)
    return {"tokenizer": f"{kind}:{path}" + (f"?{options}" if options else "")}
  return {}


def has_files(settings: Mapping[str, Any]) -> bool:
  """Whether `write` has something to write: a tokenizer of a known kind, whose file is there."""
  kind, path, _ = _parse(settings)
  return kind in _KINDS.values() and pathlib.Path(path).is_file()


def usage(settings: Mapping[str, Any], code: str) -> tuple[str, str]:
  """For a card: `code`, which loads the tokenizer, if there is one, and a sentence if not."""
  if has_files(settings):
    return code, ""
  name = settings.get("tokenizer") or settings.get("tokenizer_name") or "unknown"
  return "", f"\nNo tokenizer is in this folder: that of the texts is `{name}`.\n"


def write(out: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, int]:
  """Writes what `AutoTokenizer.from_pretrained(out)` loads, if the run has such a tokenizer.

  Args:
    out: the folder.
    settings: `Weights.input`.

  Returns:
    pad_token_id and eos_token_id, as far as they are known.
  """
  kind, path, ids = _parse(settings)
  if has_files(settings) and kind == "tokenizers":
    tokenizer_files.write(out, settings)
  elif has_files(settings):
    ids = _write_pieces(out, path, ids, settings.get("text_len", 64))
  return {f"{k}_token_id": ids[k] for k in ("pad", "eos") if k in ids}


def _parse(settings: Mapping[str, Any]) -> tuple[str, str, dict[str, int]]:
  """Kind, path and ids of "KIND:PATH?pad=ID,eos=ID"; ids may also stand in the settings."""
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  path, _, options = rest.partition("?")
  ids = {k: settings[f"{k}_id"] for k in ("pad", "eos") if settings.get(f"{k}_id") is not None}
  pairs = (option.partition("=") for option in options.split(",") if option)
  return kind, path, ids | {key: int(value) for key, _, value in pairs}


def _pieces(path: str | pathlib.Path) -> Any:
  import sentencepiece  # Only runs with such a tokenizer need it.

  found = sentencepiece.SentencePieceProcessor()
  found.LoadFromSerializedProto(pathlib.Path(path).read_bytes())
  return found


def _id_of(path: pathlib.Path, kind: str, token: str) -> int | None:
  """The id of a token in a tokenizer's file, None if it has no such token."""
  if kind == "sentencepiece":
    pieces = _pieces(path)
    found = pieces.PieceToId(token)
    return found if pieces.IdToPiece(found) == token else None
  found = files.read_json(path)
  added = {t["content"]: t["id"] for t in found.get("added_tokens") or ()}
  return (tokenizer_files.vocabulary(found, str(path)) | added).get(token)


def _write_pieces(out: pathlib.Path, path: str, ids: dict[str, int], length: int) -> dict[str, int]:
  pieces = _pieces(path)
  eos = ids.get("eos", pieces.eos_id())
  pad = ids.get("pad", pieces.pad_id() if pieces.pad_id() >= 0 else eos)
  shutil.copyfile(path, out / "spiece.model")
  config = {
    "tokenizer_class": "SiglipTokenizer",
    "eos_token": pieces.IdToPiece(eos),
    "pad_token": pieces.IdToPiece(pad),
    "unk_token": pieces.IdToPiece(pieces.unk_id()),
    "do_lower_case": True,
    "model_max_length": length,
    "model_input_names": ["input_ids"],
  }
  files.write_text(out / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
  return {"pad": pad, "eos": eos}
