"""Images become features: of every shape, in batches, resumed, and as the documentation says."""

import inspect
import re
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import convert, encode, encode_run, encoding, features, jobs, weights
from tests import tiny_run

SHAPES = {"flat.png": (60, 110), "tall.png": (300, 150), "square.png": (97, 97),
          "deep/large.png": (140, 250), "deep/odd.png": (43, 90)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tiny_run.save(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def encoder(workdir):
  """Two looks, sizes of their own, two images at a time: shared, for it compiles."""
  return encoding.Encoder(workdir, num_looks=2, aspect="keep", distortion=0.4, batch_size=2)


@pytest.fixture
def photos(tmp_path):
  """A folder of images of noise, and one file that is none."""
  rng = np.random.default_rng(0)
  for name, shape in SHAPES.items():
    path = tmp_path / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(path)
  (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
  return tmp_path / "photos"


def run(encoder, photos, out, prompts=("a tag",), **kwargs):
  return encode_run.Run(encoder, out, **kwargs)(jobs.of_files([str(photos)], prompts)[0])


def state(out):
  return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_features_are_those_of_the_model_itself(encoder):
  shape = (64, 128)
  pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
  found = encoder(pixels, "A tag!")
  task = encoder.task
  # The prompt in canonical form, as bytes + 3, the end (1) and padding (0).
  text = np.zeros((1, 16), np.int32)
  text[0, :6] = [*(byte + 3 for byte in b"a tag"), 1]
  want = jax.jit(lambda params, image, text: task.encode(
      params, {"image": image, "text": text}, num_looks=2))(
          tiny_run.params(), pixels[None], text)
  for name in features.TENSORS:
    # Another batch size is another program: sums are in another order.
    np.testing.assert_allclose(found[name], want[name][0], rtol=0, atol=2e-5, err_msg=name)
  (first, second) = want["looks"]
  index = np.concatenate([x[0] for x in (*first, *second)])
  np.testing.assert_array_equal(found["selected_index"], index)
  assert found["grids"].tolist() == [[4, 4], *map(list, task.vision.grids(shape))]
  assert found["input_size"].tolist() == list(shape) == found["image_size"].tolist()


def test_a_batch_of_mixed_shapes_gives_what_each_image_gives_alone(encoder):
  rng = np.random.default_rng(2)
  images = [rng.integers(0, 256, (*shape, 3), np.uint8)
            for shape in [(60, 110), (90, 90), (50, 100), (100, 99), (64, 128)]]
  prompts = ["one", "two", "three", "four", "five"]
  together = encoder.batch(images, prompts)
  for image, prompt, found in zip(images, prompts, together):
    alone = encoder(image, prompt)
    assert found.keys() == alone.keys()
    for name, value in found.items():
      # The same program with other rows beside it.
      np.testing.assert_allclose(value, alone[name], rtol=0, atol=1e-6, err_msg=name)
  assert not np.allclose(together[0]["text"], together[2]["text"])
  assert together[0]["input_size"].tolist() == [64, 128]


def test_all_looks_see_every_patch_of_an_image_that_is_not_square(workdir):
  encoder = encoding.Encoder(workdir, num_looks="all", aspect="keep")
  pixels = np.random.default_rng(3).integers(0, 256, (96, 30, 3), np.uint8)
  found = encoder(pixels)
  maps = features.maps(found)
  assert [m.shape for m in maps] == [(32, 4, 4), (32, 8, 2), (32, 16, 4)]
  seen = [np.abs(m).sum(0) > 0 for m in maps]
  # What `plan_looks` may leave over at the end: less than one look.
  assert seen[0].all() and sum((~s).sum() for s in seen[1:]) < 20
  assert "score_topdown" not in found and len(encoder.programs) == 1


def test_a_folder_becomes_files_and_a_bad_image_a_named_skip(encoder, photos, tmp_path, capsys):
  out = tmp_path / "out"
  assert run(encoder, photos, out) == 1
  names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
  stems = ["deep/large_a_tag", "deep/odd_a_tag", "flat_a_tag", "square_a_tag", "tall_a_tag"]
  assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("npz", "png"))
  printed = capsys.readouterr()
  assert "broken.jpg" in printed.err and "5 outputs written" in printed.out
  assert "1 left out" in printed.out
  for name, (h, w) in SHAPES.items():
    stored = features.read(out / f"{name[:-4]}_a_tag.npz")
    alone = encoder(encoder.open(photos / name), "a tag")
    assert stored["about"]["image"] == name and stored["about"]["prompt"] == "a tag"
    assert stored["image_size"].tolist() == [h, w]
    for key, value in alone.items():
      np.testing.assert_allclose(stored[key], value, rtol=0, atol=1e-6, err_msg=key)


def test_what_is_there_is_not_made_again_and_what_is_missing_is(encoder, photos, tmp_path, capsys):
  out = tmp_path / "out"
  (photos / "broken.jpg").unlink()
  assert run(encoder, photos, out) == 0
  before = state(out)
  assert run(encoder, photos, out) == 0
  assert "0 outputs written" in capsys.readouterr().out and state(out) == before
  content = (out / "flat_a_tag.npz").read_bytes()
  (out / "flat_a_tag.npz").unlink()
  (out / "square_a_tag.png").unlink()
  assert run(encoder, photos, out) == 0
  changed = {name for name, time in state(out).items() if time != before[name]}
  assert changed == {f"{n}_a_tag.{e}" for n in ("flat", "square") for e in ("npz", "png")}
  back = features.read(out / "flat_a_tag.npz")
  assert len(content) == (out / "flat_a_tag.npz").stat().st_size and back["about"]["step"] == 3
  assert run(encoder, photos, out, overwrite=True) == 0
  assert not set(state(out).items()) & set(before.items())


def test_outputs_of_other_settings_or_another_image_are_not_mixed(encoder, photos, tmp_path):
  out = tmp_path / "out"
  run(encoder, photos, out, pictures=False)
  with pytest.raises(features.FeaturesError, match="dtype='float32'; now.*dtype='float16'"):
    run(encoder, photos, out, pictures=False, dtype="float16")
  Image.new("RGB", (31, 17)).save(photos / "flat.png")
  with pytest.raises(features.FeaturesError, match="flat_a_tag is there.*image_bytes"):
    run(encoder, photos, out, pictures=False)


def test_a_failing_disk_leaves_only_whole_files_and_the_next_run_goes_on(
    encoder, photos, tmp_path, monkeypatch):
  out, written = tmp_path / "out", []
  real = np.savez

  def full(file, **arrays):
    written.append(1)
    if len(written) > 2:
      file.write(b"half of it")
      raise OSError(28, "No space left on device")
    real(file, **arrays)
  monkeypatch.setattr(np, "savez", full)
  with pytest.raises(OSError, match="No space"):
    run(encoder, photos, out, pictures=False)
  monkeypatch.undo()
  assert len(list(out.rglob("*.npz"))) == 2 and not list(out.rglob(f"*{features.PARTIAL}"))
  assert run(encoder, photos, out, pictures=False) == 1
  assert len([features.read(p) for p in out.rglob("*.npz")]) == 5


def test_records_hold_what_files_hold_and_runs_add_to_them(encoder, photos, tmp_path):
  files, packed = tmp_path / "files", tmp_path / "packed"
  kwargs = dict(pictures=False, dtype="bfloat16", maps=True)
  run(encoder, photos, files, ["a tag", "x"], **kwargs)
  assert run(encoder, photos, packed, ["a tag"], form="arrayrecord", **kwargs) == 1
  assert run(encoder, photos, packed, ["a tag", "x"], form="arrayrecord", **kwargs) == 1
  records = features.Records(packed)
  assert len(records) == 10 == len(list(files.rglob("*.npz")))
  for i, name in enumerate(records.names):
    one, other = records[i], features.read(files / f"{name}.npz")
    assert one.keys() == other.keys() and one["about"] == other["about"]
    assert one["map_1"].dtype == "bfloat16"
    for key in one.keys() - {"about"}:
      # bfloat16 keeps 8 bits; the batches of the second run are made up otherwise.
      np.testing.assert_allclose(one[key].astype(np.float32), other[key].astype(np.float32),
                                 rtol=2**-7, atol=1e-5, err_msg=key)


def test_the_example_in_the_documentation_runs(workdir, tmp_path, monkeypatch, capsys):
  example = re.search(r"```\n(.*?)```", inspect.getdoc(encoding.Encoder), re.DOTALL)[1]
  code = textwrap.dedent(example)
  assert len(code.strip().splitlines()) == 5
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "demo").symlink_to(workdir)
  Image.new("RGB", (70, 50), (200, 30, 30)).save("photo.jpg")
  exec(code, {})
  assert capsys.readouterr().out.startswith("(32,) 0.")


def test_exported_weights_encode_as_the_run_does(encoder, workdir, tmp_path):
  convert.write("npz", tmp_path / "E", weights.read(workdir))
  other = encoding.Encoder(tmp_path / "E", num_looks=2, aspect="keep", distortion=0.4, batch_size=2)
  assert other.preprocessing == encoder.preprocessing and other.settings == encoder.settings
  assert other.fingerprint == encoder.fingerprint and other.sizes == encoder.sizes
  assert other.step is None


def test_other_weights_have_another_fingerprint(encoder, workdir, tmp_path):
  # The same weights again, and weights of which one number differs in its last bit.
  same = encoding.Encoder(workdir)
  assert same.fingerprint == encoder.fingerprint and same.step == 3
  altered = dict(same.params)
  altered["t"] = jax.numpy.nextafter(altered["t"], 9.0)
  same.params = altered
  del same.fingerprint
  assert same.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("kwargs,message", [
  (dict(batch_size=0), "batch_size=0"), (dict(only_first_scales=3), "only_first_n_scales=3"),
  (dict(num_tokens=-1), "num_tokens=-1"), (dict(aspect="pad"), "aspect='pad'"),
  (dict(step=9), "step 9"), (dict(tokenizer="sentencepiece:absent"), "absent")])
def test_settings_that_do_not_fit_the_model_are_named(workdir, kwargs, message):
  with pytest.raises(ValueError, match=message):
    encoding.Encoder(workdir, **kwargs)(np.zeros((8, 8, 3), np.uint8), "x")


@pytest.mark.parametrize("pixels", [
  np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8),
  np.zeros((0, 8, 3), np.uint8), [[1, 2, 3]]])
def test_pixels_of_another_kind_are_named(encoder, pixels):
  with pytest.raises(ValueError, match="expected a uint8 array"):
    encoder(pixels)
  with pytest.raises(ValueError, match="1 images and 2 prompts"):
    encoder.batch([np.zeros((8, 8, 3), np.uint8)], ["a", "b"])


@pytest.mark.parametrize("argv,message", [
  ([], "either as --workdir"),
  (["--workdir", "w", "--weights", "v"], "either as --workdir"),
  (["--weights", "v", "--step", "3", "--image", "x"], "--step=3"),
  (["--workdir", "w"], "either as files"),
  (["--workdir", "w", "--image", "x", "--data", "d"], "either as files"),
  (["--workdir", "w", "--image", "x", "--looks", "many"], "--looks=many"),
  (["--workdir", "w", "--image", "x", "--batch", "0"], "--batch=0"),
  (["--workdir", "w", "--image", "x", "--only-first-scales", "0"], "--only-first-scales=0"),
  (["--workdir", "w", "--image", "x", "--format", "arrayrecord", "--overwrite"], "replaced"),
  (["--workdir", "w", "--image", "absent.png"], "absent.png: there is no such file"),
])
def test_the_command_names_what_is_wrong_before_anything_is_made(tmp_path, capsys, argv, message):
  assert encode.main([*argv, "--out", str(tmp_path / "out")]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_ctrl_c_is_said_and_has_an_exit_code_of_its_own(monkeypatch, capsys):
  def stop(options):
    raise KeyboardInterrupt
  monkeypatch.setattr(encode, "encode", stop)
  assert encode.main(["--out", "x"]) == 130
  assert "same command goes on" in capsys.readouterr().err


def test_the_command_takes_pairs_from_a_file_and_writes_records_of_maps(workdir, photos, capsys):
  listing = photos / "pairs.jsonl"
  listing.write_text('{"image": "flat.png", "prompt": "a tag"}\n{"image": "gone.png"}\n'
                     '{"image": "deep/large.png", "prompt": "another"}\n')
  out = photos.parent / "out"
  argv = ["--workdir", str(workdir), "--prompts", str(listing), "--looks", "0", "--maps",
          "--format", "arrayrecord", "--dtype", "bfloat16", "--out", str(out)]
  assert encode.main(argv) == 1
  printed = capsys.readouterr()
  assert "gone.png" in printed.err and "2 outputs written" in printed.out
  records = features.Records(out)
  assert records.names == ["flat_a_tag", "deep/large_another"]
  for i in range(2):
    found = records[i]
    # No look: the low-resolution tokens and their score, and nothing above.
    assert not len(found["selected_index"]) and np.abs(found["map_0"].astype(float)).sum() > 1
    assert not found["map_2"].any() and found["map_2"].shape == (32, 16, 16)
    assert found["about"]["num_looks"] == 0
  assert (out / f"{records.names[0]}.png").is_file()
