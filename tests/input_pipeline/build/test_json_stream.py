"""The streaming reader agrees with json.load, wherever its window ends."""

import json
import random

import pytest

from input_pipeline.build import json_stream
from input_pipeline.build.durable import BuildError


def random_value(rng, depth=0):
  kind = rng.randrange(4 if depth > 3 else 6)
  if kind == 4:
    return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
  if kind == 5:
    return {f"k{i}é\"\\": random_value(rng, depth + 1) for i in range(rng.randrange(4))}
  return [rng.randrange(-9999, 9999), rng.random() * 1e9, "tex\"t\\ \u00fc\U0001f600\n{[",
          rng.choice([True, False, None])][kind]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_elements_are_those_of_json_load_for_any_window(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(json_stream, "_CHUNK", chunk)
  rng = random.Random(0)
  path = tmp_path / "a.json"
  for ascii_only in (True, False):
    value = [random_value(rng) for _ in range(30)]
    text = json.dumps(value, ensure_ascii=ascii_only, indent=rng.choice([None, 2]))
    path.write_text(text, encoding="utf-8")
    assert list(json_stream.iterate(path)) == [(None, element) for element in value]


def test_an_object_yields_the_elements_of_its_arrays_and_its_other_values(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"info": {"a": [1]}, "n": 12, "images": [1, 2], "none": [], "boxes": [[3]]}')
  assert list(json_stream.iterate(path)) == [
    ("info", {"a": [1]}), ("n", 12), ("images", 1), ("images", 2), ("boxes", [3])
  ]


@pytest.mark.parametrize("text", ["[]", "{}", " [ ] \n", "\ufeff[]"])
def test_empty_documents_yield_nothing(tmp_path, text):
  path = tmp_path / "a.json"
  path.write_text(text, encoding="utf-8")
  assert list(json_stream.iterate(path)) == []


def test_bytes_that_are_not_utf8_spoil_only_their_own_text(tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(b'["good", "b\xffd", "good"]')
  values = [value for _, value in json_stream.iterate(path)]
  assert values[::2] == ["good", "good"]
  with pytest.raises(UnicodeEncodeError):
    values[1].encode()


@pytest.mark.parametrize(
  "text, message",
  [('[{"a": 1}, {"a":', "cut off"), ("", "cut off"), ('[1, 2', "cut off"), ('{"a": [1', "cut off"),
   ('["abc', "cut off"), ("[1 2]", "expected , or ]"), ("[1] x", "text after the end"),
   ("{1: 2}", "key in quotes"), ("PK\x03\x04", "expected [ or {"), ('[{"a" 1}, 2]', "delimiter")],
)
def test_what_is_not_json_is_an_error_that_names_the_file(tmp_path, text, message):
  path = tmp_path / "a.json"
  path.write_text(text)
  with pytest.raises(BuildError) as caught:
    list(json_stream.iterate(path))
  assert message in str(caught.value) and "a.json" in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
  with pytest.raises(BuildError, match="none.json.*No such file"):
    list(json_stream.iterate(tmp_path / "none.json"))
