"""CLIP's byte-pair encoding against its algorithm, on a small vocabulary in each of its forms.

That real captions get the ids of the published vocabulary is tested in
tests/oracles/test_clip_parity.py, with the library that ships it.
"""

import gzip
import json
import pickle
import unicodedata

import numpy as np
import pytest

from input_pipeline import clip_tokenizer, text

MERGES = [("i", "n"), ("t", "h"), ("th", "e</w>"), ("a", "g"), ("i", "m"), ("im", "ag"),
          ("imag", "e</w>"), ("g", "o"), ("o", "d</w>"), ("go", "od</w>"), ("in", "g</w>"),
          ("\u00f0", "\u0141"), ("'", "s</w>"), ("s", "h"), ("sh", "ar"), ("a", "r"), ("o", "p</w>"),
          ("e", "r</w>"), ("1", "2</w>"), ("!", "!</w>")]  # fmt: skip
TEXTS = ["The image", "it's  GOOD\n\tsharp-ish!!", "a &amp;lt;b&gt; &quot;the&quot; &rsquo;s", "",
         "good \U0001f600\U0001f44d the", "caf\u00e9 \u00dcn\u0131 \ufb01ne 12x3 \u00b2\u0968",
         "\u201cquoted\u201d", "image <|endoftext|> the", "x" * 40, "I'LL they've n't '''s _a_"]


def units():
  """GPT-2's characters for bytes, in the order of their ids."""
  shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
  hidden = [b for b in range(256) if b not in shown]
  return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


VOCABULARY = [*units().values(), *(u + "</w>" for u in units().values()),
              *("".join(m) for m in MERGES), "<|startoftext|>", "<|endoftext|>"]


def words(caption):
  """Specials, contractions, runs of letters, single digits, runs of the rest."""
  kind = lambda c: {"L": "L", "N": "N"}.get(unicodedata.category(c)[0], " " if c.isspace() else "x")
  fixed = ("<|startoftext|>", "<|endoftext|>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
  out, i = [], 0
  while i < len(caption):
    found = next((s for s in fixed if caption.startswith(s, i)), "")
    end = i + max(len(found), 1)
    if not found and kind(caption[i]) in "Lx":
      # A run of other characters goes on over what begins a contraction.
      while end < len(caption) and kind(caption[end]) == kind(caption[i]):
        end += 1
    if kind(caption[i]) != " ":
      out.append(caption[i:end])
    i = end
  return out


def reference(caption):
  """Merges the pair that stands first in the list, everywhere, until none is left."""
  out = []
  for word in words(clip_tokenizer.clean(caption)):
    if word in VOCABULARY[-2:]:
      out.append(VOCABULARY.index(word))
      continue
    parts = [units()[b] for b in word.encode()]
    parts[-1] += "</w>"
    while pairs := [p for p in zip(parts, parts[1:]) if p in MERGES]:
      best, joined, i = min(pairs, key=MERGES.index), [], 0
      while i < len(parts):
        hit = tuple(parts[i : i + 2]) == best
        joined.append("".join(best) if hit else parts[i])
        i += 1 + hit
      parts = joined
    out += [VOCABULARY.index(p) for p in parts]
  return out


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
  """The vocabulary in each form: OpenAI's, two files, one file, and their folders."""
  root = tmp_path_factory.mktemp("clip")
  for name in ("openai", "two", "one"):
    (root / name).mkdir()
  lines = ["#version: 0.2", *(" ".join(m) for m in MERGES)]
  with gzip.open(root / "openai/bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as f:
    f.write("\n".join(lines) + "\n")
  (root / "two/vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCABULARY)}))
  (root / "two/merges.txt").write_text("\n".join(lines), encoding="utf-8")
  first = root / "openai/bpe_simple_vocab_16e6.txt.gz"
  (root / "one/tokenizer.json").write_text(clip_tokenizer.to_json(str(first)), encoding="utf-8")
  return {"openai": first, "openai folder": first.parent, "two": root / "two/vocab.json",
          "merges": root / "two/merges.txt", "two folder": root / "two", "one": root / "one"}


@pytest.mark.parametrize("form", ["openai", "openai folder", "two", "merges", "two folder", "one"])
def test_ids_are_those_of_the_algorithm_in_every_form_of_the_vocabulary(forms, form):
  found = text.make_tokenizer(f"clip:{forms[form]}")
  last = len(VOCABULARY) - 1
  assert (found.vocab_size, found.pad_id, found.eos_id) == (last + 1, 0, last)
  assert clip_tokenizer.read_vocabulary(str(forms[form])) == (
    {t: i for i, t in enumerate(VOCABULARY)}, MERGES)
  for caption in TEXTS:
    assert found.encode(caption) == reference(caption), caption


def test_a_row_is_start_text_end_and_zeros_and_what_is_too_long_keeps_its_end(forms):
  found = pickle.loads(pickle.dumps(text.make_tokenizer(f"clip:{forms['openai']}?pad=0")))
  start, end = len(VOCABULARY) - 2, len(VOCABULARY) - 1
  ids = reference("The image")
  np.testing.assert_array_equal(found.tokenize("The image", 6), [start, *ids, end, 0, 0])
  np.testing.assert_array_equal(found.tokenize("", 4), [start, end, 0, 0])
  long = reference("the " * 90)
  np.testing.assert_array_equal(found.tokenize("the " * 90, 77), [start, *long[:75], end])
  assert found.tokenize("the", 77).dtype == np.int32


def test_captions_are_read_with_plain_characters_in_lower_case():
  assert clip_tokenizer.clean(" A\u00a0 &amp;amp; B&#39;s \uff34he \n x ") == "a & b's the x"
  assert clip_tokenizer.clean("\ufb01ne \u201cL\u201d &ldquo;M&rdquo;") == 'fine "l" "m"'
  # Where a text has "<" in it, its entities are resolved behind the quotes.
  assert clip_tokenizer.clean("<b> &rsquo;") == "<b> \u2019"


@pytest.mark.parametrize("content, message", [
  (None, "there is no file .*github.com/openai/CLIP"),
  ("{}", "is no vocabulary of CLIP"),
  ('{"model": {"vocab": {"a": 0}, "merges": []}}', "another tokeniser's"),
  ('{"model": {"vocab": {"a": 0}, "merges": ["a b c"]}}', "a merge is not of two parts"),
])  # fmt: skip
def test_what_is_no_vocabulary_of_clips_is_refused_with_where_to_get_it(tmp_path, content, message):
  if content is not None:
    (tmp_path / "tokenizer.json").write_text(content)
  with pytest.raises(text.TokenizerError, match=message):
    text.make_tokenizer(f"clip:{tmp_path}")


def test_an_end_that_is_not_the_vocabularys_is_refused(forms):
  with pytest.raises(text.TokenizerError, match="eos=5 is asked for"):
    text.make_tokenizer(f"clip:{forms['openai']}?eos=5")
