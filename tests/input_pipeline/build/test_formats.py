"""Each layout is read as its authors write it, and each flaw in it is counted."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.build import coco, folder, jsonl, visual_genome
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord


def draw(root, *names, size=(40, 30)):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(root / name)
  return root


def dump(path, value):
  path.write_text(json.dumps(value))
  return path


def outcomes(plan):
  """Id -> sample, or the reason it is skipped."""
  found = {}
  for item in plan.items:
    try:
      found[item.id] = plan.load(item)
    except SkipRecord as skip:
      found.setdefault(item.id, skip.reason)
  return found


def regions(sample):
  return [(*map(float, box), text) for box, text in zip(sample.boxes, sample.texts)]


def reasons(notes):
  return collections.Counter(reason for reason, _ in notes)


# JSON lines


def lines(path, *entries):
  path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
  return path


def test_jsonl_reads_the_documented_layout(tmp_path):
  images = draw(tmp_path / "im", "a/x.png", "y.png")
  plan = jsonl.read(images, lines(
    tmp_path / "a.jsonl",
    {"image": "a/x.png", "global_text": "all of it",
     "regions": [{"box": [1, 2, 3, 4.5], "text": "one"}, {"box": [0, 0, 40, 30], "text": "two"}]},
    "",
    {"image": "y.png", "id": "why", "global_text": "only this"},
  ))
  found = outcomes(plan)
  assert regions(found["a/x.png"]) == [(1, 2, 3, 4.5, "one"), (0, 0, 40, 30, "two")]
  assert found["a/x.png"].global_text == "all of it"
  assert (found["why"].global_text, found["why"].source) == ("only this", "y.png")
  assert not plan.set_aside


def test_jsonl_reads_classes_and_captions_one_by_one(tmp_path):
  images = draw(tmp_path / "im", "a.png", "b.png", "c.png", "d.png", "e.png")
  plan = jsonl.read(images, lines(
    tmp_path / "a.jsonl",
    {"image": "a.png", "captions": ["one", " ", "two. "], "label": "big_ship"},
    {"image": "b.png", "captions": ["one", "two"], "global_text": "both"},
    {"image": "c.png", "captions": ["alone"], "label": ""},
    {"image": "d.png", "label": "big_ship"},
    {"image": "e.png", "captions": "one"},
  ))
  found = outcomes(plan)
  malformed = found.pop("e.png")
  assert {name: (s.global_text, s.captions, s.label) for name, s in found.items()} == {
    "a.png": ("one. two.", ["one", "two."], "big_ship"),
    "b.png": ("both", ["one", "two"], None),
    # One caption is the global caption already.
    "c.png": ("alone.", [], None),
    # Its class is all there is to say about it.
    "d.png": ("big ship", [], "big_ship"),
  }
  assert malformed == "captions-malformed"
  assert reasons(found["a.png"].dropped) == {"caption-empty": 1}
  assert reasons(found["c.png"].dropped) == {"label-empty": 1}


def test_jsonl_counts_each_flaw(tmp_path):
  images = draw(tmp_path / "im", "x.png", "unused.png")
  text = {"global_text": "t"}
  path = lines(
    tmp_path / "a.jsonl",
    {"image": "x.png", "regions": [{"box": [0, 0, 9, 9], "text": "t"}, 5], "regoins": []},
    "{not json",
    "[1]",
    {"image": 5, **text},
    {"image": "none.png", **text},
    {"image": "x.png", "id": "r", "regions": {"box": 1}},
    {"image": "x.png", "id": "e"},
    {"image": "x.png", **text},
  )
  with open(path, "ab") as file:
    file.write(b'\n{"image": "x.png", "id": "u", "global_text": "\xff"}')
  plan = jsonl.read(images, path)
  found = outcomes(plan)
  assert reasons(found["x.png"].dropped) == {"region-malformed": 1}
  del found["x.png"]
  assert found == {
    "line 2": "line-not-json", "line 3": "line-not-json", "line 4": "image-not-named",
    "none.png": "image-missing", "r": "regions-malformed", "e": "nothing-to-learn",
    "u": "nothing-to-learn",
  }
  assert [item.problem[0] for item in plan.items if item.id == "x.png" and item.problem] == [
    "id-duplicated"]
  assert plan.set_aside == {"unknown-key 'regoins'": 1, "image-file-without-annotation": 1}


def test_jsonl_refuses_a_whole_document_of_json(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps([{"image": "x"}], indent=1))
  with pytest.raises(BuildError, match="whole object on each line"):
    jsonl.read(draw(tmp_path / "im", "x.png"), path)
  with pytest.raises(BuildError, match="none.jsonl"):
    jsonl.read(tmp_path / "im", tmp_path / "none.jsonl")
  with pytest.raises(BuildError, match="no such directory"):
    jsonl.read(tmp_path / "nowhere", lines(tmp_path / "b.jsonl", {"image": "x"}))


# COCO and its relatives


def coco_file(path, images, annotations, categories=()):
  # The order of COCO's own files: categories come last, after they are needed.
  return dump(path, {
    "info": {"year": 2017}, "licenses": [{"id": 1}], "images": images,
    "annotations": annotations, "categories": list(categories),
  })


def test_coco_instances_name_their_boxes_by_category(tmp_path):
  images = draw(tmp_path / "im", "000000000009.jpg", "000000000025.jpg")
  path = coco_file(
    tmp_path / "instances.json",
    [{"license": 3, "file_name": "000000000009.jpg", "width": 40, "height": 30, "id": 9,
      "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"},
     {"file_name": "000000000025.jpg", "width": 40, "height": 30, "id": 25}],
    [{"segmentation": [[1, 2, 3, 4]], "area": 9.5, "iscrowd": 0, "image_id": 9,
      "bbox": [1.5, 2, 10, 20.25], "category_id": 53, "id": 1},
     {"iscrowd": 1, "image_id": 9, "bbox": [0, 0, 5, 5], "category_id": 18, "id": 2},
     {"iscrowd": 0, "image_id": 9, "bbox": [0, 0, 5, 5], "category_id": 18, "id": 3},
     {"iscrowd": 0, "image_id": 9, "bbox": [0, 0, 5, 5], "category_id": 99, "id": 4},
     {"iscrowd": 0, "image_id": 777, "bbox": [0, 0, 5, 5], "category_id": 18, "id": 5}],
    [{"supercategory": "food", "id": 53, "name": "apple"},
     {"supercategory": "animal", "id": 18, "name": "polar_bear"}],
  )
  plan = coco.read(images, path)
  sample = outcomes(plan)["9"]
  assert regions(sample) == [(1.5, 2, 11.5, 22.25, "an apple"), (0, 0, 5, 5, "a polar bear")]
  assert reasons(sample.dropped) == {"box-of-a-crowd": 1, "caption-not-text": 1}
  # Image 25 has no annotation, its file is not asked for, and annotation 5 has no image.
  assert plan.set_aside == {
    "image-without-annotation": 1, "annotation-for-no-image": 1,
    "image-file-without-annotation": 1,
  }


def test_coco_captions_become_the_sentences_of_the_global_caption(tmp_path):
  images = draw(tmp_path / "im", "a.jpg", "b.jpg")
  entries = [{"file_name": "a.jpg", "id": 1}, {"file_name": "b.jpg", "id": 2}]
  boxes = coco_file(tmp_path / "instances.json", entries, [
    {"image_id": 1, "bbox": [0, 0, 9, 9], "category_id": 1, "id": 1}], [{"id": 1, "name": "cat"}])
  captions = coco_file(tmp_path / "captions.json", entries, [
    {"image_id": 1, "id": 48, "caption": "A cat sleeps. "},
    {"image_id": 1, "id": 37, "caption": "A grey animal on a bed"},
    {"image_id": 2, "id": 50, "caption": "Nothing boxed!"}])
  plan = coco.read(images, boxes, captions)
  found = outcomes(plan)
  assert found["1"].global_text == "A grey animal on a bed. A cat sleeps."
  assert found["1"].captions == ["A grey animal on a bed", "A cat sleeps."]
  assert found["2"].captions == []
  assert regions(found["1"]) == [(0, 0, 9, 9, "a cat")]
  assert (found["2"].global_text, regions(found["2"])) == ("Nothing boxed!", [])
  # A caption file is an annotation file too.
  alone = outcomes(coco.read(images, captions))
  assert alone["1"].global_text == found["1"].global_text


def test_lvis_finds_its_images_by_their_address(tmp_path):
  images = draw(tmp_path / "im", "train2017/000000391895.jpg", "000000000001.jpg")
  url = "http://images.cocodataset.org/{}/{:012d}.jpg"
  path = coco_file(
    tmp_path / "lvis_v1_train.json",
    [{"id": i, "coco_url": url.format(split, i), "width": 40, "height": 30,
      "neg_category_ids": [1], "not_exhaustive_category_ids": []}
     for i, split in ((391895, "train2017"), (1, "val2017"))],
    [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16,
      "segmentation": []} for i in (391895, 1)],
    [{"id": 1, "name": "bow_(decorative_ribbons)", "synset": "bow.n.08", "frequency": "c",
      "synonyms": ["bow_(decorative_ribbons)"], "def": "a decorative interlacing of ribbons"}],
  )
  plan = coco.read(images, path)
  found = outcomes(plan)
  assert found["391895"].texts == found["1"].texts == ["a bow (decorative ribbons)"]
  assert not plan.set_aside


def test_referring_expressions_give_one_region_each(tmp_path):
  images = draw(tmp_path / "im", "COCO_train2014_000000581857.jpg")
  path = coco_file(
    tmp_path / "refcoco.json",
    [{"id": 581857, "file_name": "train2014/COCO_train2014_000000581857.jpg"}],
    [{"image_id": 581857, "bbox": [1, 1, 4, 4], "category_id": 1, "id": 1, "sentences": [
       {"sent_id": 0, "raw": "THE LADY", "sent": "the lady", "tokens": ["the", "lady"]},
       {"sent": "lady in blue"}, "woman"]},
     {"image_id": 581857, "bbox": [2, 2, 4, 4], "category_id": 1, "id": 2, "caption": "a coat"},
     {"image_id": 581857, "bbox": [3, 3, 4, 4], "id": 3, "caption": ["left", "right", ""]}],
    [{"id": 1, "name": "person"}],
  )
  sample = outcomes(coco.read(images, path))["581857"]
  assert sample.texts == ["THE LADY", "lady in blue", "woman", "a coat", "left", "right"]
  assert reasons(sample.dropped) == {"caption-empty": 1}


def test_coco_counts_what_cannot_be_read(tmp_path):
  images = draw(tmp_path / "im", "a.jpg")
  path = coco_file(
    tmp_path / "a.json",
    [{"id": 1, "file_name": "a.jpg"}, {"id": 2}, {"id": 3, "file_name": "gone.jpg"}, 7,
     {"file_name": "noid.jpg"}, {"id": 1, "file_name": "a.jpg"},
     {"id": 4, "file_name": "a.jpg", "width": 80, "height": 60}],
    [{"image_id": i, "bbox": [0, 0, 5, 5], "category_id": 1} for i in (1, 2, 3, 4)]
    + [{"image_id": 1, "bbox": [0, 0, 5], "category_id": 1}, "x", {"bbox": [0, 0, 1, 1]},
       {"image_id": 1, "bbox": None, "category_id": 1}, {"image_id": 1}],
    [{"id": 1, "name": "cat"}],
  )
  plan = coco.read(images, path)
  found = outcomes(plan)
  assert reasons(found["1"].dropped) == {"box-malformed": 2}
  assert (found["2"], found["3"]) == ("image-not-named", "image-missing")
  assert found["4"] == "image-size-differs"
  assert [i.problem[0] for i in plan.items if i.id == "1" and i.problem] == ["id-duplicated"]
  assert plan.set_aside == {
    "images-entry-malformed": 2, "annotations-entry-malformed": 2,
    "annotation-without-box-and-caption": 1,
  }


def test_coco_refuses_other_json(tmp_path):
  images = draw(tmp_path / "im", "a.jpg")
  for value in ([{"id": 1, "regions": []}], {"images": []}, {"data": [1]}):
    with pytest.raises(BuildError, match="Is this a COCO-style file"):
      coco.read(images, dump(tmp_path / "a.json", value))


# Visual Genome


def vg_region(image, i, x=1, y=2, width=10, height=20, phrase="the clock is green in colour"):
  return {"region_id": 1382 + i, "width": width, "height": height, "image_id": image,
          "phrase": phrase, "y": y, "x": x}


def test_visual_genome_reads_both_image_folders(tmp_path):
  images = draw(tmp_path / "im", "VG_100K/2.jpg", "VG_100K_2/1.jpg", "VG_100K/5.jpg", "3.jpg")
  path = dump(tmp_path / "region_descriptions.json", [
    {"regions": [vg_region(1, 0), vg_region(1, 1, 30, 20, 99, 99, "a shade of  light ")], "id": 1},
    {"regions": [vg_region(2, 2)], "image_id": 2},
    {"regions": [{**vg_region(3, 3), "image": 3}]},
    {"regions": [], "id": 4},
  ])
  data = dump(tmp_path / "image_data.json", [
    {"width": 40, "url": "https://x/VG_100K_2/1.jpg", "height": 30, "image_id": 1,
     "coco_id": None, "flickr_id": None}, {"width": 400, "height": 300, "image_id": 2}])
  plan = visual_genome.read(images, path, data)
  found = outcomes(plan)
  assert regions(found["1"]) == [
    (1, 2, 11, 22, "the clock is green in colour"), (30, 20, 40, 30, "a shade of  light")]
  assert reasons(found["1"].mended) == {"box-clipped": 1}
  assert found["2"] == "image-size-differs"
  assert len(found["3"].texts) == 1
  assert plan.set_aside == {"image-without-annotation": 1, "image-file-without-annotation": 1}
  assert not isinstance(outcomes(visual_genome.read(images, path))["2"], str)


def test_visual_genome_counts_each_flaw(tmp_path):
  images = draw(tmp_path / "im", "1.jpg")
  path = dump(tmp_path / "r.json", [
    {"regions": [vg_region(1, 0), {"x": 1, "phrase": "p"}, 5, vg_region(1, 1, width=0),
                 vg_region(1, 2, phrase=""), vg_region(1, 3, x="a")], "id": 1},
    {"regions": [vg_region(9, 0)], "id": 9},
    {"id": 3}, "x", {"regions": [{"phrase": "p"}]},
    {"regions": [vg_region(1, 0)], "id": 1},
  ])
  plan = visual_genome.read(images, path)
  found = outcomes(plan)
  assert reasons(found["1"].dropped) == {
    "box-malformed": 2, "region-malformed": 1, "box-below-one-pixel": 1, "caption-empty": 1}
  assert found["9"] == "image-missing"
  assert [found[f"entry {i}"] for i in (2, 3, 4)] == ["entry-malformed"] * 3
  assert plan.items[-1].problem[0] == "id-duplicated"


def test_visual_genome_refuses_other_json(tmp_path):
  images = draw(tmp_path / "im", "1.jpg")
  with pytest.raises(BuildError, match="Is this region_descriptions.json"):
    visual_genome.read(images, dump(tmp_path / "a.json", {"images": []}) and dump(
      tmp_path / "a.json", {"images": [1]}))
  with pytest.raises(BuildError, match="Is this image_data.json"):
    visual_genome.read(images, dump(tmp_path / "b.json", []), dump(tmp_path / "c.json", [1]))


# Folders


def test_folder_reads_captions_beside_the_images(tmp_path):
  root = draw(tmp_path, "a.jpg", "s/b.png", "c.png", "d.png", "e.png")
  (root / "a.txt").write_bytes(b"\xef\xbb\xbfA caf\xc3\xa9.\n")
  dump(root / "s" / "b.json", {
    "global_text": "whole", "regions": [{"box": [0, 0, 5, 6], "text": "part"}]})
  (root / "d.txt").write_bytes(b"\xff\xfe\x00")
  (root / "e.json").write_text("{")
  (root / "README.txt").write_text("about these images")
  plan = folder.read(root)
  found = outcomes(plan)
  assert found["a.jpg"].global_text == "A café."
  assert regions(found["s/b.png"]) == [(0, 0, 5, 6, "part")]
  assert found["s/b.png"].global_text == "whole"
  assert (found["d.png"], found["e.png"]) == ("nothing-to-learn", "caption-not-json")
  assert plan.set_aside == {"image-without-caption": 1, "caption-for-no-image": 1}


def test_folders_without_captions_name_their_class(tmp_path):
  plan = folder.read(draw(tmp_path, "golden_retriever/1.jpg", "x/tabby-cat/2.jpg", "loose.jpg"))
  found = outcomes(plan)
  assert found["golden_retriever/1.jpg"].global_text == "golden retriever"
  assert found["x/tabby-cat/2.jpg"].global_text == "tabby cat"
  assert found["golden_retriever/1.jpg"].label == "golden_retriever"
  assert found["x/tabby-cat/2.jpg"].label == "tabby-cat"
  assert plan.set_aside == {"image-without-caption": 1}
  assert np.shape(found["x/tabby-cat/2.jpg"].boxes) == (0, 4)
