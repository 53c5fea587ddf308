"""How a caption becomes ids: canonical text, and tokenisers behind one interface.

A tokeniser is named by a string: "bytes", "sentencepiece:PATH", "tokenizers:PATH" or "clip:PATH",
the last three with optional "?pad=1,eos=1" where the ids differ from what the file itself says
(SigLIP pads its SentencePiece ids with 1, the end-of-sequence id).
"""

import abc
import html
import os
import string
import unicodedata
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int32


class TokenizerError(ValueError):
  """A tokeniser that is unknown, or whose file is missing or of another kind."""


class Tokenizer(Protocol):
  """What the loader needs: `encode` gives bare ids, `tokenize` a full row for the model."""

  vocab_size: int
  pad_id: int
  eos_id: int

  def encode(self, text: str) -> list[int]: ...

  def tokenize(self, text: str, length: int) -> Int32[np.ndarray, "length"]: ...


def make_tokenizer(spec: str) -> Tokenizer:
  """Returns the tokeniser of a spec such as "bytes" or "sentencepiece:/path/c4_en.model?pad=1".

  Raises:
    TokenizerError: unknown kind or option, missing file, or a file of another kind.
  """
  kind, _, rest = spec.partition(":")
  if kind == "bytes" and not rest:
    return ByteTokenizer()
  kinds = {"sentencepiece": SentencePieceTokenizer, "tokenizers": JsonTokenizer, "clip": _clip}
  if kind not in kinds:
    raise TokenizerError(
      f'tokenizer is {spec!r}; expected "bytes", "sentencepiece:PATH", "tokenizers:PATH" or '
      '"clip:PATH".'
    )
  path, _, options = rest.partition("?")
  ids = {}
  for option in filter(None, options.split(",")):
    name, _, value = option.partition("=")
    if name not in ("pad", "eos") or not value.isdigit():
      raise TokenizerError(
        f'tokenizer {spec!r}: option {option!r} is not understood; expected "pad=ID" or "eos=ID".'
      )
    ids[name] = int(value)
  # CLIP's own says where its vocabulary is to be had.
  if kind != "clip" and not os.path.isfile(path):
    raise TokenizerError(f"tokenizer {spec!r}: there is no file {path!r}.")
  return kinds[kind](path, **ids)


def _clip(path: str, **ids: int) -> Tokenizer:
  from input_pipeline import clip_tokenizer  # It is made of what is below.

  return clip_tokenizer.ClipTokenizer(path, **ids)


class _Base(abc.ABC):
  """Rows of ids as SigLIP has them: text, end of sequence (kept when cut), padding."""

  vocab_size: int
  pad_id: int
  eos_id: int

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text without end of sequence or padding."""

  def tokenize(self, text: str, length: int) -> Int32[np.ndarray, "length"]:
    """Returns `length` ids: as much of the text as fits, the end of sequence, padding."""
    ids = self._cut(self.encode(text), length - 1)
    row = np.full(length, self.pad_id, np.int32)
    row[: len(ids)] = ids
    row[len(ids)] = self.eos_id
    return row

  def _cut(self, ids: list[int], length: int) -> list[int]:
    return ids[:length]


class ByteTokenizer(_Base):
  """UTF-8 bytes: id = byte + 3; 0 pads, 1 ends, 2 is left for a mask."""

  vocab_size = 259
  pad_id = 0
  eos_id = 1
  _OFFSET = 3

  def encode(self, text: str) -> list[int]:
    # A lone surrogate (from a broken JSON escape) has no UTF-8 form; it becomes "?".
    return [byte + self._OFFSET for byte in text.encode("utf-8", errors="replace")]

  def decode(self, ids) -> str:
    """Returns the text of ids, up to the first end of sequence."""
    ids = [int(i) for i in ids]
    if self.eos_id in ids:
      ids = ids[: ids.index(self.eos_id)]
    data = bytes(i - self._OFFSET for i in ids if i >= self._OFFSET)
    return data.decode("utf-8", errors="replace")

  def _cut(self, ids: list[int], length: int) -> list[int]:
    if len(ids) <= length:
      return ids
    # Bytes 0b10...... continue a character: the cut goes before the character they belong to.
    while length > 0 and (ids[length] - self._OFFSET) & 0xC0 == 0x80:
      length -= 1
    return ids[:length]


class _FromFile(_Base):
  """A tokeniser held by a library object: checked at once, loaded again after pickling."""

  def __init__(self, path: str, pad: int | None = None, eos: int | None = None):
    self._path = path
    self._model: Any = None
    self._load()
    self.vocab_size = self._size()
    self.eos_id = self._known_id(eos, "eos")
    # A vocabulary without padding is padded with the end of sequence, as SigLIP does.
    self.pad_id = (
      self.eos_id if pad is None and self._find("pad") is None else (self._known_id(pad, "pad"))
    )

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_model": None}

  def _known_id(self, given: int | None, name: str) -> int:
    value = self._find(name) if given is None else given
    if value is None or not 0 <= value < self.vocab_size:
      raise TokenizerError(
        f"tokenizer file {self._path}: the {name} id is {value}, expected 0 to "
        f'{self.vocab_size - 1}. Give it as "PATH?{name}=ID".'
      )
    return value

  def _load(self) -> Any:
    if self._model is None:
      try:
        self._model = self._read()
      except ImportError as e:
        raise TokenizerError(f"tokenizer file {self._path}: {e}. Install that package.") from e
      except Exception as e:  # The libraries raise RuntimeError, OSError and bare Exception.
        raise TokenizerError(
          f"tokenizer file {self._path} is no {self._KIND} ({str(e).strip()})."
        ) from e
    return self._model

  _KIND: str

  @abc.abstractmethod
  def _read(self) -> Any:
    """Loads the library's object."""

  @abc.abstractmethod
  def _size(self) -> int:
    """Returns the number of ids."""

  @abc.abstractmethod
  def _find(self, name: str) -> int | None:
    """Returns the file's own "pad" or "eos" id, or None."""


class SentencePieceTokenizer(_FromFile):
  """A SentencePiece `.model` file."""

  _KIND = "SentencePiece model"

  def _read(self):
    import sentencepiece  # Loaded only where it is used.

    model = sentencepiece.SentencePieceProcessor()
    # Bytes and not the path: the library's own file reading aborts on some foreign files.
    with open(self._path, "rb") as f:
      if not model.LoadFromSerializedProto(f.read()) or not model.GetPieceSize():
        raise ValueError("it holds no pieces")
    return model

  def _size(self) -> int:
    return self._load().GetPieceSize()

  def _find(self, name: str) -> int | None:
    value = getattr(self._load(), f"{name}_id")()
    return value if value >= 0 else None

  def encode(self, text: str) -> list[int]:
    return self._load().EncodeAsIds(text)


class JsonTokenizer(_FromFile):
  """A `tokenizer.json` of the tokenizers library; its own padding and templates are not used."""

  _KIND = "tokenizers JSON"
  _NAMES = {
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<end_of_text>", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
  }

  def _read(self):
    import tokenizers

    model = tokenizers.Tokenizer.from_file(self._path)
    model.no_padding()
    model.no_truncation()
    return model

  def _size(self) -> int:
    return self._load().get_vocab_size(with_added_tokens=True)

  def _find(self, name: str) -> int | None:
    ids = (self._load().token_to_id(token) for token in self._NAMES[name])
    return next((i for i in ids if i is not None), None)

  def encode(self, text: str) -> list[int]:
    return self._load().encode(text, add_special_tokens=False).ids


# Characters that ftfy would make plain before punctuation is stripped.
_PLAIN = {
  **{ord(c): "'" for c in "\u2018\u2019\u201a\u201b\u02bc"},
  **{ord(c): '"' for c in "\u201c\u201d\u201e\u201f"},
  **{0xFB00 + i: s for i, s in enumerate(("ff", "fi", "fl", "ffi", "ffl"))},
  **{0xFF01 + i: chr(0x21 + i) for i in range(94)},  # full-width ASCII
  **{c: " " for c in (0x09, 0x0A, 0x0D, 0x3000)},
  **{c: None for c in (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xFEFF)},
}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize(text: str) -> str:
  """Returns a caption in PS3's canonical form (open_clip's "canonicalize").

  HTML entities are resolved twice, "_" becomes a space, ASCII punctuation is dropped, letters are
  lowered and white space is squeezed. The original runs `ftfy` first; see `plain`.
  """
  text = plain(html.unescape(html.unescape(text)))
  return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def plain(text: str) -> str:
  """Returns a text with plain characters, as far as `ftfy` is followed here.

  Straight quotes, no ligatures, full-width ASCII as ASCII, no control characters, NFC. Text that
  was decoded with the wrong encoding is not repaired.
  """
  return unicodedata.normalize("NFC", text.translate(_PLAIN))
