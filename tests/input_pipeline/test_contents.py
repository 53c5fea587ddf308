"""What records say besides their pixels, in the order that evaluation counts them."""

import numpy as np

from input_pipeline import contents, loader, text


def _config(data, **changes):
  return loader.InputConfig(**{"data": data, "split": "val", "text_len": 40, **changes})


def test_entries_are_in_the_order_of_the_images_of_a_stream(make_dataset, make_sample):
  samples = {name: [make_sample(i, regions=i % 3) for i in range(n)]
             for name, n in (("a", 3), ("b", 4))}
  samples["a"][1].captions = ["one", "two"]
  samples["b"][2].label = "ship"
  data = {name: {"path": make_dataset({"val": s}, name, shards=1)} for name, s in samples.items()}
  entries = contents.of_config(_config(data))
  both = samples["a"] + samples["b"]
  assert [e.regions for e in entries] == [len(s.texts) for s in both]
  assert entries[1].captions == ("one", "two") and entries[0].captions == ()
  assert entries[4].captions == (both[4].global_text,)
  assert [e.label for e in entries] == [None] * 5 + ["ship", None]
  for batch in loader.eval_stream(_config(data), batch_size=1, items="images"):
    assert entries[batch["image_index"][0]].captions


def test_a_record_that_cannot_be_read_keeps_its_place(make_dataset, make_sample):
  directory = make_dataset({"val": [make_sample(1), b"\x05", make_sample(3)]}, shards=1)
  entries = contents.of_config(_config(directory))
  assert entries[1] == contents.Entry() and entries[2].captions == ("the whole of image 3",)
  _, news = contents.of_source(loader.open_members(_config(directory))[0].source, 1)
  assert news.skipped == {"record-format": 1}


def test_texts_become_the_ids_that_a_stream_gives(make_dataset, make_sample):
  sample = make_sample(1)
  sample.global_text = "The image is a close-up of a RED tag. No text is visible."
  directory = make_dataset({"val": [sample]}, shards=1)
  for canonical in (True, False):
    config = _config(directory, canonicalize=canonical)
    (batch,) = loader.eval_stream(config, batch_size=1, items="images")
    rows = contents.token_rows(config, ["other", sample.global_text])
    np.testing.assert_array_equal(rows[1], batch["text"][0])
    found = text.make_tokenizer("bytes").decode(rows[1])
    assert found == ("a red tag" if canonical else "a RED tag.")
