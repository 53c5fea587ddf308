"""The tokenizer of a run gets into a SigLIP folder, and is found there with its ids.

That the libraries cut texts alike with it is tested in tests/oracles/test_siglip_parity.py.
"""

import json

import pytest
import sentencepiece
import tokenizers

from big_vision_ext.convert import siglip_tokenizer
from input_pipeline import text

CORPUS = [f"a handwritten {w} on a {c} tag" for w in ("seven", "two", "nine") for c in "rgbw"] * 9


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  """{kind: (spec, pad, eos)} of tokenizers whose ids are not the libraries' defaults."""
  folder = tmp_path_factory.mktemp("tokenizers")
  with open(folder / "tiny.model", "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_writer=f, vocab_size=50, pad_id=3, eos_id=1, unk_id=2,
      bos_id=0, pad_piece="[PAD]", minloglevel=2, hard_vocab_limit=False)
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
    vocab_size=50, special_tokens=["<unk>", "end", "fill"], show_progress=False))
  model.save(str(folder / "tiny.json"))
  return {"sentencepiece": (f"sentencepiece:{folder}/tiny.model?pad=1", 1, 1),
          "sentencepiece, own padding": (f"sentencepiece:{folder}/tiny.model", 3, 1),
          "tokenizers": (f"tokenizers:{folder}/tiny.json?pad=2,eos=1", 2, 1)}


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece, own padding", "tokenizers"])
def test_a_tokenizer_is_found_again_and_cuts_texts_alike(tmp_path, specs, kind):
  spec, pad, eos = specs[kind]
  ids = siglip_tokenizer.write(tmp_path, {"tokenizer": spec, "text_len": 8})
  assert ids == {"pad_token_id": pad, "eos_token_id": eos}
  found = siglip_tokenizer.find(tmp_path, {"vocab_size": 50})["tokenizer"]
  before, after = text.make_tokenizer(spec), text.make_tokenizer(found)
  assert (after.pad_id, after.eos_id) == (pad, eos)
  for caption in ("a handwritten two", "", CORPUS[3] * 3):
    assert after.tokenize(caption, 8).tolist() == before.tokenize(caption, 8).tolist()


def test_ids_of_the_model_count_where_the_tokenizer_names_none(tmp_path, specs):
  siglip_tokenizer.write(tmp_path, {"tokenizer": specs["tokenizers"][0]})
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "fill"}}))
  config = {"vocab_size": 50, "pad_token_id": 7, "eos_token_id": 1}
  assert siglip_tokenizer.find(tmp_path, config)["tokenizer"].endswith("?pad=2,eos=1")
  # Published configs name an end of sequence that no vocabulary of theirs has.
  config["eos_token_id"] = 49_407
  assert siglip_tokenizer.find(tmp_path, config)["tokenizer"].endswith("?pad=2")


@pytest.mark.parametrize("spec", [None, "bytes", "sentencepiece:/no/x.model", "tokenizers:/no"])
def test_without_a_file_nothing_is_written_and_the_card_says_so(tmp_path, spec):
  settings = {"tokenizer": spec}
  assert siglip_tokenizer.write(tmp_path, settings) == {}
  assert not list(tmp_path.iterdir())
  code, said = siglip_tokenizer.usage(settings, "load()\n")
  assert code == "" and f"`{spec or 'unknown'}`" in said
  assert siglip_tokenizer.find(tmp_path, {"vocab_size": 50}) == {}
