"""How does a caption become ids for CLIP? Byte-pair encoding with OpenAI's vocabulary.

The vocabulary is not part of this project; it is MIT-licensed, and comes in three forms that all
give the same ids: `bpe_simple_vocab_16e6.txt.gz` of github.com/openai/CLIP (the wheel of
open_clip_torch has it too), `vocab.json` with `merges.txt`, or a `tokenizer.json`, as they lie in
every CLIP model's folder of the transformers library.
"""

import functools
import gzip
import html
import json
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import Int32

from input_pipeline import text

HOW_TO_GET = (
  "CLIP's vocabulary is MIT-licensed: take bpe_simple_vocab_16e6.txt.gz from "
  "github.com/openai/CLIP (folder clip), or the tokenizer.json of a CLIP model's folder"
)
START, END = "<|startoftext|>", "<|endoftext|>"
# OpenAI's file has more merges than the published vocabulary of 49,408 uses.
_MERGES = 49_152 - 256 - 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer(text.Tokenizer):
  """Rows of ids as CLIP has them: start, text, end (kept when cut), zeros.

  Attributes:
    vocab_size, pad_id, eos_id: of the vocabulary; `start_id` is that of the start.
  """

  def __init__(self, path: str, pad: int = 0, eos: int | None = None):
    """Reads the vocabulary.

    Args:
      path: a file in one of the three forms, or a folder with one.
      pad: what fills a row up; it is behind the end, where a causal model does not look.
      eos: only to be checked.

    Raises:
      TokenizerError: no such file, or it is of another kind.
    """
    self._path = path
    vocab, _ = read_vocabulary(path)
    self.vocab_size, self.pad_id = len(vocab), pad
    self.start_id, self.eos_id = vocab[START], vocab[END]
    if eos not in (None, self.eos_id):
      raise text.TokenizerError(
        f"tokenizer file {path}: eos={eos} is asked for, but {END} is {self.eos_id}."
      )

  def encode(self, caption: str) -> list[int]:
    """Returns the ids of a text without start, end or padding."""
    return _encoder(self._path).encode(clean(caption), add_special_tokens=False).ids

  def tokenize(self, caption: str, length: int) -> Int32[np.ndarray, "length"]:
    """Returns `length` ids: start, as much of the text as fits, end, padding."""
    row = np.full(length, self.pad_id, np.int32)
    ids = [self.start_id, *self.encode(caption)[: length - 2], self.eos_id]
    row[: len(ids)] = ids
    return row


def clean(caption: str) -> str:
  """Returns a caption as CLIP's tokeniser reads it: plain characters, single spaces, lower case.

  The original runs `ftfy` first; see `text.plain` for what is done of that here.
  """
  if "<" not in caption:
    # With it, ftfy takes the text for one that speaks of entities, and leaves them for later.
    caption = html.unescape(caption)
  caption = html.unescape(html.unescape(text.plain(caption)))
  return re.sub(r"\s+", " ", caption).strip().lower()


def read_vocabulary(path: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Returns {token: id} and the merges, the first ones first.

  Raises:
    TokenizerError: no such file, or it is of another kind.
  """
  file = find(path)
  try:
    found = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else {}
    if isinstance(found.get("model"), dict):
      vocab = dict(found["model"]["vocab"])
      vocab |= {t["content"]: t["id"] for t in found.get("added_tokens") or ()}
      merges = found["model"]["merges"]
    elif file.suffix == ".json" or file.name == "merges.txt":
      vocab = json.loads((file.parent / "vocab.json").read_text(encoding="utf-8"))
      merges = (file.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
      merges = [line for line in merges if line and not line.startswith("#version")]
    else:
      opened = gzip.open if file.suffix == ".gz" else open
      with opened(file, "rt", encoding="utf-8") as f:
        merges = f.read().split("\n")[1 : _MERGES + 1]
      vocab = None
    merges = [tuple(m.split() if isinstance(m, str) else m) for m in merges if m]
    if any(len(m) != 2 for m in merges):
      raise ValueError("a merge is not of two parts")
    vocab = _numbered(merges) if vocab is None else {str(t): int(i) for t, i in vocab.items()}
  except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise text.TokenizerError(
      f"tokenizer file {file} is no vocabulary of CLIP ({e!r}). {HOW_TO_GET}."
    ) from e
  if not {START, END} <= vocab.keys() or sorted(vocab.values()) != list(range(len(vocab))):
    raise text.TokenizerError(
      f"tokenizer file {file}: expected ids from 0 to {len(vocab) - 1} with {START} and {END} "
      f"among them: it is another tokeniser's. {HOW_TO_GET}."
    )
  return vocab, merges


def find(path: str) -> pathlib.Path:
  """Returns the file of a vocabulary, given it or its folder.

  Raises:
    TokenizerError: there is none.
  """
  file = pathlib.Path(path)
  if file.is_dir():
    names = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
    file = next((file / name for name in names if (file / name).is_file()), file / names[0])
  if not file.is_file():
    raise text.TokenizerError(f"tokenizer \"clip:{path}\": there is no file {file}. {HOW_TO_GET}.")
  return file


def to_json(path: str) -> str:
  """Returns the vocabulary as a `tokenizer.json` of the tokenizers library."""
  made = _make(path)
  start, end = (made.token_to_id(token) for token in (START, END))
  import tokenizers

  made.post_processor = tokenizers.processors.RobertaProcessing(
    (END, end), (START, start), trim_offsets=False, add_prefix_space=False
  )
  return made.to_str()


def _numbered(merges: list[tuple[str, str]]) -> dict[str, int]:
  """OpenAI's ids: bytes, bytes that end a word, merges, start and end."""
  units = list(_byte_units().values())
  tokens = [*units, *(f"{u}</w>" for u in units), *("".join(m) for m in merges), START, END]
  return {token: i for i, token in enumerate(tokens)}


def _byte_units() -> dict[int, str]:
  """GPT-2's printable stand-ins for bytes: themselves, or from U+0100 on; printable ones first."""
  shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [b for b in range(256) if b not in set(shown)]
  return {b: chr(b) for b in shown} | {b: chr(0x100 + i) for i, b in enumerate(hidden)}


@functools.lru_cache(maxsize=4)
def _encoder(path: str) -> Any:
  return _make(path)


def _make(path: str) -> Any:
  import tokenizers  # Loaded only where it is used.
  from tokenizers import normalizers, pre_tokenizers

  vocab, merges = read_vocabulary(path)
  made = tokenizers.Tokenizer(tokenizers.models.BPE(
    vocab, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>",
    fuse_unk=False))  # fmt: skip
  split = tokenizers.Regex(_WORDS)
  made.normalizer = normalizers.Sequence([
    normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
    normalizers.Lowercase()])  # fmt: skip
  made.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(split, "removed", invert=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False)])  # fmt: skip
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens([START, END])
  return made
