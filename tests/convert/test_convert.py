import json
import os
import subprocess
import sys

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import files
from big_vision_ext.convert.lazy import ConvertError
from tests.convert import cases


@pytest.fixture
def weights():
  return cases.weights("siglip", cases.SIGLIP)


def test_reading_and_writing_need_neither_a_framework_nor_jax():
  code = ("import sys\nfrom big_vision_ext import convert\n"
          "[convert._module(f) for f in convert.FORMATS]\n"
          "print([m for m in ('jax', 'flax', 'torch', 'transformers', 'timm', 'open_clip', "
          "'tensorflow') if m in sys.modules])")
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "[]"


def test_a_failed_export_leaves_nothing_behind(tmp_path, weights):
  params = dict(weights.params)
  del params["txt/head/bias"]
  broken = convert.Weights(params, "siglip", weights.model)
  with pytest.raises(ConvertError, match="(?s)missing in it.*txt/head/bias"):
    convert.write("npz", tmp_path / "e", broken)
  assert os.listdir(tmp_path) == []


def test_an_earlier_export_is_replaced_and_other_folders_are_left_alone(tmp_path, weights):
  convert.write("npz", tmp_path / "e", weights)
  (tmp_path / "e" / "leftover").write_text("")
  convert.write("npz", tmp_path / "e", weights)
  assert sorted(os.listdir(tmp_path)) == ["e"]
  assert sorted(os.listdir(tmp_path / "e")) == ["README.md", "export.json", "model.npz"]
  (tmp_path / "mine").mkdir()
  convert.write("npz", tmp_path / "mine", weights)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.txt").write_text("chapter 1")
  with pytest.raises(ConvertError, match="full: holds files that are no earlier export"):
    convert.write("npz", tmp_path / "full", weights)
  with pytest.raises(ConvertError, match="thesis.txt: is a file"):
    convert.write("npz", tmp_path / "full" / "thesis.txt", weights)
  assert os.listdir(tmp_path / "full") == ["thesis.txt"]


def test_a_failed_export_leaves_the_earlier_one(tmp_path, weights):
  convert.write("npz", tmp_path / "e", weights)
  before = (tmp_path / "e" / "model.npz").read_bytes()
  with pytest.raises(ConvertError, match="layout 'spiral'"):
    convert.write("npz", tmp_path / "e", weights, layout="spiral")
  assert (tmp_path / "e" / "model.npz").read_bytes() == before
  assert os.listdir(tmp_path) == ["e"]


@pytest.mark.parametrize("dtype", convert.DTYPES)
def test_values_are_rounded_to_the_asked_dtype(tmp_path, weights, dtype):
  convert.write("npz", tmp_path / "e", weights, dtype=dtype)
  found = convert.read(tmp_path / "e").params
  cases.assert_same(found, {n: x.astype(convert.DTYPES[dtype]) for n, x in weights.params.items()})


def test_values_beyond_float16_are_refused_by_name(tmp_path, weights):
  params = dict(weights.params)
  params["txt/head/bias"] = np.full(48, -7e4, np.float32)
  large = convert.Weights(params, "siglip", weights.model)
  with pytest.raises(ConvertError, match="txt/head/bias: has values up to 7e.04, which float16"):
    convert.write("npz", tmp_path / "e", large, dtype="float16")
  convert.write("npz", tmp_path / "e", large, dtype="bfloat16")


def test_formats_and_dtypes_that_are_not_known_are_named(tmp_path, weights):
  for call in (lambda: convert.write("onnx", tmp_path / "e", weights),
               lambda: convert.read(tmp_path, "onnx")):
    with pytest.raises(ConvertError, match="format 'onnx' is unknown; expected one of npz"):
      call()
  with pytest.raises(ConvertError, match="dtype 'int8' is unknown"):
    convert.write("npz", tmp_path / "e", weights, dtype="int8")
  with pytest.raises(ConvertError, match="absent: there is no such file or folder"):
    convert.read(tmp_path / "absent")
  (tmp_path / "x.txt").write_text("")
  with pytest.raises(ConvertError, match="format is not recognised"):
    convert.read(tmp_path / "x.txt")


def test_formats_are_recognised_from_the_files(tmp_path, weights):
  convert.write("npz", tmp_path / "npz", weights)
  convert.write("ps3_torch", tmp_path / "ps3", cases.weights("ps3", cases.PS3["named"]))
  for path, name in (("npz", "npz"), ("npz/model.npz", "npz"), ("ps3", "ps3_torch"),
                     ("ps3/model.safetensors", "ps3_torch")):
    assert convert.detect(tmp_path / path) == name
    assert convert.read(tmp_path / path).meta["format"] == name


def test_what_a_format_cannot_say_comes_back_from_the_note_beside_it(tmp_path):
  model = {**cases.PS3["named"], "selection_loss": "bce_dice", "max_boxes": 16}
  weights = cases.weights("ps3", model)
  weights = convert.Weights(weights.params, "ps3", model, {"tokenizer": "bytes", "text_len": 16},
                            {"name": "mine", "step": 7, "licence": "CC0"})
  convert.write("ps3_torch", tmp_path / "e", weights)
  found = convert.read(tmp_path / "e")
  assert found.model["selection_loss"] == "bce_dice" and found.model["max_boxes"] == 16
  assert found.input["tokenizer"] == "bytes" and found.input["image_size"] == 256
  assert found.meta["step"] == 7 and found.meta["licence"] == "CC0"


@pytest.mark.parametrize("kind", ["tokenizers", "sentencepiece"])
@pytest.mark.parametrize("format", ["npz", "ps3_torch"])
def test_the_tokenizer_goes_with_the_weights(tmp_path, kind, format):
  from input_pipeline import text

  path = tmp_path / "vocabulary"
  make_tokenizer(kind, path)
  spec = f"{kind}:{path}?pad=1,eos=2"
  want = text.make_tokenizer(spec).tokenize("a red tag on a tree", 16)
  weights = cases.weights("ps3", cases.PS3["named"])
  weights = convert.Weights(weights.params, "ps3", weights.model,
                            {"tokenizer": spec, "text_len": 16, "canonicalize": True})
  convert.write(format, tmp_path / "e", weights)
  path.unlink()
  (tmp_path / "e").rename(tmp_path / "moved")
  found = text.make_tokenizer(convert.read(tmp_path / "moved").input["tokenizer"])
  np.testing.assert_array_equal(found.tokenize("a red tag on a tree", 16), want)
  if kind == "tokenizers":
    # By the file alone, as transformers reads it: its own template ends the text, and padding is
    # with the token that is named.
    import tokenizers
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "moved" / "tokenizer" / "tokenizer.json"))
    config = files.read_json(tmp_path / "moved" / "tokenizer" / "tokenizer_config.json")
    alone.enable_truncation(16)
    alone.enable_padding(length=16, pad_id=alone.token_to_id(config["pad_token"]),
                         pad_token=config["pad_token"])
    np.testing.assert_array_equal(alone.encode("a red tag on a tree").ids, want)
    long = "tag " * 40
    np.testing.assert_array_equal(alone.encode(long).ids, found.tokenize(long, 16))


def make_tokenizer(kind, path):
  words = ["a red tag on a tree", "a tag", "red tree on a tag"] * 20
  if kind == "sentencepiece":
    import io

    import sentencepiece
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=out, vocab_size=28, pad_id=1, eos_id=2,
        unk_id=0, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    path.write_bytes(out.getvalue())
  else:
    import tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train_from_iterator(words, tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<pad>", "</s>"]))
    made.save(str(path))


def test_the_card_says_what_a_finder_needs(tmp_path):
  model = cases.PS3["custom"]
  meta = {"name": "my run", "step": 800, "examples": 25600, "data": "sample",
          "metrics": {"regions/recall": 0.25},
          "init": [{"path": "siglip", "format": "npz", "licence": "apache-2.0"},
                   {"path": "other", "format": "ps3_torch"}]}
  weights = cases.weights("ps3", model)
  settings = {"image_size": 320, "resize": "bicubic", "tokenizer": "bytes", "text_len": 16,
              "canonicalize": True, "mean": 0.5, "std": 0.25}
  convert.write("ps3_torch", tmp_path / "e",
                convert.Weights(weights.params, "ps3", model, settings, meta))
  card = (tmp_path / "e" / "README.md").read_text()
  for part in ("# my run", "PS3 model", "ps3-torch", "import ps3_custom", "from_pretrained(\"E\")",
               "320 x 320 px", "mean 0.5 and std 0.25", "16 ids of the tokenizer `bytes`",
               "trained on: sample", "| regions/recall | 0.25 |", "siglip: apache-2.0",
               "other: unknown", "`model.safetensors`", "No tokenizer is written"):
    assert part in card, part
  total = sum(x.size for x in weights.params.values())
  assert f"{total:,} parameters, float32" in card
  block = card.split("```json\n")[1].split("\n```")[0]
  assert json.loads(block) == {"task": "ps3", "model": json.loads(json.dumps(model))}


def test_the_card_of_weights_of_unknown_origin_says_so(tmp_path, weights):
  convert.write("npz", tmp_path / "e", weights)
  card = (tmp_path / "e" / "README.md").read_text()
  assert "Unknown: nothing is recorded of what these weights began from" in card
  scratch = convert.Weights(weights.params, "siglip", weights.model, {}, {"from_scratch": True})
  convert.write("npz", tmp_path / "e", scratch)
  assert "began from random values" in (tmp_path / "e" / "README.md").read_text()
