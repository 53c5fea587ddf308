"""Which outputs there are to make, and what they are called."""

import json

import numpy as np
import pytest
from PIL import Image

from big_vision_ext import jobs


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "photos"
  for name in ("b.png", "a.JPG", "deep/er/c.webp", ".hidden/d.png", "deep/notes.txt"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
      path.write_text("no image")
    else:
      Image.new("RGB", (8, 6)).save(path)
  return root


def test_folders_are_searched_at_any_depth_in_the_order_of_names(folder):
  found, ignored = jobs.of_files([str(folder)])
  assert [job.name for job in found] == ["a", "b", "deep/er/c"]
  assert [job.source.key for job in found] == ["a.JPG", "b.png", "deep/er/c.webp"]
  assert ignored == 1
  assert found[0].source.read().pixels.shape == (6, 8, 3) == (*found[0].source.shape(), 3)


def test_every_prompt_goes_with_every_image(folder, tmp_path):
  (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n", encoding="utf-8")
  found, _ = jobs.of_files([str(folder)], ["a red tag!"], str(tmp_path / "prompts.txt"))
  assert [(job.source.key, job.prompt) for job in found] == [
      (key, prompt) for key in ("a.JPG", "b.png", "deep/er/c.webp")
      for prompt in ("a red tag!", "a cat", "a dog")]
  assert found[0].name == "a_a_red_tag"


def test_pairs_of_images_and_prompts_come_from_a_file(folder, tmp_path):
  listing = tmp_path / "pairs.jsonl"
  lines = [{"image": "b.png", "prompt": "a cat"}, {"image": "a.JPG"}, {"image": "absent.png"}]
  listing.write_text("\n".join(map(json.dumps, lines)))
  found, _ = jobs.of_files([str(folder)], (), str(listing))
  assert [(job.name, job.prompt) for job in found] == [
      ("b_a_cat", "a cat"), ("a", None), ("absent", None)]
  assert found[0].source.path == folder / "b.png"
  beside, _ = jobs.of_files([], (), str(listing))
  assert beside[0].source.path == tmp_path / "b.png"


def test_no_two_outputs_share_a_name_and_none_is_asked_for_twice(folder):
  long = "word " * 60
  prompts = ["a cat", "a_cat", "A Cat!", long + "one", long + "two", "a cat"]
  found, _ = jobs.of_files([str(folder / "b.png"), str(folder)], prompts)
  # b.png is named directly and by its folder, which is one file under one key.
  assert len(found) == 3 * 5
  names = [job.name.casefold() for job in found]
  assert len(set(names)) == len(names)
  assert max(len(name.split("/")[-1]) for name in names) <= 110


def test_images_of_the_same_name_in_two_folders_are_two(tmp_path):
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / name / "photo.png")
  both = [str(tmp_path / "one"), str(tmp_path / "two")]
  found, _ = jobs.of_files(both)
  assert len({job.name for job in found}) == 2
  assert [job.name for job in found] == [job.name for job in jobs.of_files(both)[0]]


def test_names_stay_inside_the_output_folder(tmp_path):
  listing = tmp_path / "pairs.jsonl"
  listing.write_text('{"image": "/etc/../up.png"}\n{"image": "../../x.png"}\n')
  for job in jobs.of_files([], (), str(listing))[0]:
    assert not job.name.startswith("/") and ".." not in job.name


def test_records_bring_their_boxes_and_captions(small_sample_data):
  found = jobs.of_records(str(small_sample_data), "val", [1, 0], ["a cat"], region=0)
  assert [(job.source.key, job.region) for job in found] == [
      ("val-1", None), ("val-1", 0), ("val-0", None), ("val-0", 0)]
  photo = found[1].source.read()
  assert len(photo.boxes) and found[1].prompt and np.isfinite(photo.boxes).all()
  assert found[1].source.shape() == photo.pixels.shape[:2]


@pytest.mark.parametrize("paths,prompts,text,message", [
  (["absent.png"], [], None, "absent.png: there is no such file"),
  (["{tmp}/empty"], [], None, "has no images in it"),
  (["{tmp}"], [], " \n", "no line with a prompt"),
  (["{tmp}"], ["x"], '{"image": "a.png"}', "beside it give no --prompt"),
  ([], [], '{"image": 3}', "entry 1 is"),
  ([], [], '{"image": "a.png", "prompt": ["x"]}', "entry 1 is"),
  ([], [], "just text", "entry 1 is"),
])
def test_what_cannot_be_had_is_named(tmp_path, paths, prompts, text, message):
  (tmp_path / "empty").mkdir()
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  file = None
  if text is not None:
    file = tmp_path / ("p.txt" if not text.strip() else "p.jsonl")
    file.write_text(text)
  with pytest.raises(jobs.JobError, match=message):
    jobs.of_files([p.format(tmp=tmp_path) for p in paths], prompts, str(file) if file else None)
