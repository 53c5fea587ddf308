import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers

from input_pipeline import text

CORPUS = [f"a handwritten {w} on a {c} tag" for w in ("seven", "two", "nine") for c in "rgbw"] * 9


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("sp") / "tiny.model"
  with open(path, "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_writer=f, vocab_size=60, pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
  return str(path)


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
  )
  model.train_from_iterator(CORPUS, trainer)
  # A file's own padding and templates must not get into the rows.
  model.enable_padding(length=7)
  model.enable_truncation(3)
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single="</s> $A </s>", special_tokens=[("</s>", 1)]
  )
  path = tmp_path_factory.mktemp("json") / "tokenizer.json"
  model.save(str(path))
  return str(path)


def test_bytes_are_their_values_plus_three():
  tok = text.make_tokenizer("bytes")
  assert (tok.vocab_size, tok.pad_id, tok.eos_id) == (259, 0, 1)
  assert tok.encode("A\x00ÿ") == [68, 3, 0xC3 + 3, 0xBF + 3]
  row = tok.tokenize("ab", 6)
  assert row.dtype == np.int32 and row.tolist() == [100, 101, 1, 0, 0, 0]


def test_byte_rows_decode_to_the_text_and_stay_in_the_vocabulary():
  tok = text.make_tokenizer("bytes")
  for s in ("", "plain", "é ü 字 🙂", "".join(map(chr, range(0x20, 0x300)))):
    row = tok.tokenize(s, 2000)
    assert tok.decode(row) == s
    assert row.min() >= 0 and row.max() < tok.vocab_size


def test_cutting_never_splits_a_character_and_keeps_as_much_as_fits():
  tok = text.make_tokenizer("bytes")
  s = "aé字🙂" * 3
  for length in range(1, 40):
    row = tok.tokenize(s, length)
    kept = tok.decode(row)
    assert len(row) == length and s.startswith(kept) and "\ufffd" not in kept
    following = s[len(kept) : len(kept) + 1]
    assert not following or len((kept + following).encode()) > length - 1
    assert tok.eos_id in row


def test_lone_surrogates_do_not_stop_the_byte_tokeniser():
  assert text.make_tokenizer("bytes").tokenize("a\ud800b", 5).tolist() == [100, 66, 101, 1, 0]


def test_a_sentencepiece_model_gives_its_own_ids_then_end_and_padding(sentencepiece_file):
  model = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_file)
  tok = text.make_tokenizer(f"sentencepiece:{sentencepiece_file}")
  ids = model.encode("a handwritten two")
  assert len(ids) > 3
  assert tok.vocab_size == model.get_piece_size()
  assert tok.tokenize("a handwritten two", len(ids) + 3).tolist() == [*ids, 1, 0, 0]
  assert tok.tokenize("a handwritten two", 4).tolist() == [*ids[:3], 1]


def test_siglip_padding_is_chosen_in_the_spec(sentencepiece_file):
  tok = text.make_tokenizer(f"sentencepiece:{sentencepiece_file}?pad=1,eos=1")
  ids = tok.encode("two")
  assert tok.tokenize("two", 8).tolist() == ids + [1] * (8 - len(ids))


def test_a_tokenizers_file_gives_bare_ids_without_its_padding_cut_or_template(json_file):
  tok = text.make_tokenizer(f"tokenizers:{json_file}")
  plain = tokenizers.Tokenizer.from_file(json_file)
  plain.no_padding()
  plain.no_truncation()
  ids = plain.encode(CORPUS[0], add_special_tokens=False).ids
  assert (tok.pad_id, tok.eos_id) == (0, 1) and tok.vocab_size == plain.get_vocab_size()
  assert len(ids) > 3 and tok.tokenize(CORPUS[0], len(ids) + 2).tolist() == [*ids, 1, 0]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "tokenizers"])
def test_tokenisers_can_be_sent_to_workers(kind, sentencepiece_file, json_file):
  path = {"bytes": "", "sentencepiece": f":{sentencepiece_file}", "tokenizers": f":{json_file}"}
  tok = text.make_tokenizer(kind + path[kind])
  again = pickle.loads(pickle.dumps(tok))
  np.testing.assert_array_equal(again.tokenize("a red tag", 9), tok.tokenize("a red tag", 9))
  assert again.vocab_size == tok.vocab_size


@pytest.mark.parametrize(
  "spec, says",
  [
    ("byte", 'expected "bytes", "sentencepiece:PATH", "tokenizers:PATH" or "clip:PATH"'),
    ("bytes:x", 'expected "bytes"'),
    ("sentencepiece:/nowhere/x.model", "there is no file '/nowhere/x.model'"),
    ("tokenizers:", "there is no file ''"),
    ("tokenizers:x?bos=1", "option 'bos=1' is not understood"),
    ("tokenizers:x?pad=one", "option 'pad=one' is not understood"),
  ],
)
def test_a_wrong_spec_is_explained(spec, says):
  with pytest.raises(text.TokenizerError, match=says.replace("?", r"\?")):
    text.make_tokenizer(spec)


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizers"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"{}", bytes(range(256)) * 9])
def test_a_file_of_another_kind_is_named(tmp_path, kind, content):
  path = tmp_path / "file.model"
  path.write_bytes(content)
  with pytest.raises(text.TokenizerError, match=f"{path} is no (SentencePiece|tokenizers)"):
    text.make_tokenizer(f"{kind}:{path}")


def test_an_id_outside_of_the_vocabulary_is_refused(sentencepiece_file):
  with pytest.raises(text.TokenizerError, match=r"the pad id is 999, expected 0 to \d+\. Give it"):
    text.make_tokenizer(f"sentencepiece:{sentencepiece_file}?pad=999")


@pytest.mark.parametrize(
  "raw, canonical",
  [
    ("A Red_Car, isn't it?", "a red car isnt it"),
    ("&amp;lt;b&amp;gt; caf&eacute;", "b café"),
    ("e\u0301", "é"),
    ("\u201cquoted\u201d \u2018it\u2019s\u2019", "quoted its"),
    ("ﬁne ﬂags", "fine flags"),
    ("ＦＵＬＬ１", "full1"),
    ("a\u0000b\tc\nd\u3000e\ufeff", "ab c d e"),
    ("字 — ünï", "字 — ünï"),
    ("?!...", ""),
  ],
)
def test_canonical_text_follows_open_clip(raw, canonical):
  assert text.canonicalize(raw) == canonical


def test_canonical_text_is_a_fixed_point():
  raw = "".join(map(chr, range(1, 0x400))) + "ＡＢ＿ ﬄ “x” &lt;"
  once = text.canonicalize(raw)
  assert text.canonicalize(once) == once
