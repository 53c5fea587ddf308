"""How does the tokenizer of a run get into a folder that transformers' `AutoTokenizer` loads?

Only a `tokenizers:FILE` tokenizer has a form that the library knows. Ours adds the end of sequence
and pads by itself, so the file's own template is replaced by one that does the same.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import clip_tokenizer, files
from big_vision_ext.convert.lazy import ConvertError


def write(folder: pathlib.Path, settings: Mapping[str, Any]) -> bool:
  """Writes tokenizer.json and tokenizer_config.json into `folder`, if the run has such a tokenizer.

  Args:
    folder: made if needed.
    settings: `Weights.input`: tokenizer ("tokenizers:FILE?pad=ID,eos=ID"), text_len and, where the
      ids are not in the tokenizer's name, pad_id and eos_id.

  Returns:
    Whether there was one to write.

  Raises:
    ConvertError: the file is gone, or an id is not in its vocabulary.
  """
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  if kind != "tokenizers":
    return False
  path, _, options = rest.partition("?")
  ids = dict(option.split("=") for option in options.split(",") if "=" in option)
  found = files.read_json(path)
  tokens = {i: t for t, i in vocabulary(found, path).items()}
  tokens |= {t["id"]: t["content"] for t in found.get("added_tokens") or ()}
  eos, pad = (_token(tokens, name, ids.get(name, settings.get(f"{name}_id")), path)
              for name in ("eos", "pad"))
  (eos_id,) = [i for i, t in tokens.items() if t == eos][:1]
  found["padding"] = found["truncation"] = None
  found["post_processor"] = {
      "type": "TemplateProcessing",
      "single": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": eos, "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": eos, "type_id": 0}},
               {"Sequence": {"id": "B", "type_id": 1}},
               {"SpecialToken": {"id": eos, "type_id": 1}}],
      "special_tokens": {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}}}
  folder.mkdir(parents=True, exist_ok=True)
  files.write_text(folder / "tokenizer.json", json.dumps(found, ensure_ascii=False) + "\n")
  files.write_text(folder / "tokenizer_config.json", json.dumps({
      "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": pad,
      "padding_side": "right", "truncation_side": "right",
      "model_max_length": settings.get("text_len", 64),
      "clean_up_tokenization_spaces": False}, indent=2) + "\n")
  return True


def keep(out: pathlib.Path, settings: Mapping[str, Any]) -> bool:
  """Puts a run's tokenizer into `out/tokenizer`; whether there was a file to put there."""
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  path = pathlib.Path(rest.partition("?")[0])
  if kind == clip_tokenizer.KIND:
    return clip_tokenizer.write(out / "tokenizer", settings)
  if kind not in ("tokenizers", "sentencepiece") or not path.is_file():
    return False
  if kind == "tokenizers":
    return write(out / "tokenizer", settings)
  (out / "tokenizer").mkdir()
  shutil.copyfile(path, out / "tokenizer" / "spiece.model")
  return True


def within(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
  """`settings` whose tokenizer is the copy that lies in `folder`, relative to it, if one does."""
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  names = {"tokenizers": "tokenizer.json", "sentencepiece": "spiece.model",
           clip_tokenizer.KIND: clip_tokenizer.FILE}
  for place in ("tokenizer/", ""):
    if kind in names and (folder / f"{place}{names[kind]}").is_file():
      given = dict(option.split("=") for option in rest.partition("?")[2].split(",") if option)
      ids = {k: settings[f"{k}_id"] for k in ("pad", "eos") if settings.get(f"{k}_id") is not None}
      options = ",".join(f"{k}={v}" for k, v in (ids | given).items())
      spec = f"{kind}:{place}{names[kind]}" + (f"?{options}" if options else "")
      return {**settings, "tokenizer": spec}
  return dict(settings)


def resolve(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `within`: the tokenizer's path from here."""
  kind, _, rest = (settings.get("tokenizer") or "").partition(":")
  path = rest.partition("?")[0]
  if not path or pathlib.Path(path).is_absolute() or not (folder / path).is_file():
    return dict(settings)
  return {**settings, "tokenizer": f"{kind}:{folder.absolute()}/{rest}"}


def vocabulary(found: Mapping[str, Any], path: str) -> dict[str, int]:
  """Token -> id of a tokenizer.json; a Unigram model lists (token, score) pairs instead."""
  vocab = (found.get("model") or {}).get("vocab")
  if isinstance(vocab, list):
    return {entry[0]: i for i, entry in enumerate(vocab)}
  if isinstance(vocab, dict):
    return vocab
  raise ConvertError(f"{path}: has no vocabulary; expected a tokenizer.json of the tokenizers "
                     "library")


def _token(tokens: Mapping[int, str], name: str, given: Any, path: str) -> str:
  if given is None or int(given) not in tokens:
    raise ConvertError(f"{path}: the {name} id {given} is not in its vocabulary; give it in the "
                       f"run's tokenizer as \"?{name}=ID\"")
  return tokens[int(given)]
