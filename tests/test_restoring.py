"""Pictures of any size are restored in tiles, without seams, with their depth and alpha."""

import functools

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import encode, restoring, restoring_files, restoring_run, tasks, weights
from big_vision_ext.core import sharding, trees
from input_pipeline.images import ImageError
from tests import tiny_run

# Of a picture, it sees less than 6 pixels to either side.
CONV = {"net": dict(name="edsr", scale=2, fields=dict(width=4, depth=1)), "image_size": 16}
SWIN = {"net": dict(name="swinir", scale=1, fields=dict(
  width=4, depth=1, blocks=2, heads=1, window=4, tail="denoise")), "image_size": 16}


def loaded(model, name="restore"):
  """Random weights, large enough to matter, of a model that has not been trained."""
  task = tasks.make(name, model)
  shapes = sharding.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0), None)))
  rng = np.random.default_rng(3)
  members = getattr(task, "members", 1) > 1
  params = {n: (rng.standard_normal(x.shape) / max(np.prod(x.shape[members:-1]), 9) ** 0.5).astype(
    np.float32) for n, x in trees.flatten(shapes).items()}
  return weights.Loaded(name, model, {}, trees.nest(params), None, "random")


@functools.cache
def conv(tile=48, overlap=24, ensemble=False, batch_size=3):
  return restoring.Restorer(loaded(CONV), tile=tile, overlap=overlap, ensemble=ensemble,
                            batch_size=batch_size)


@functools.cache
def at_once(kind="conv"):
  """The model on a whole picture (y, x, 3)."""
  found = loaded(CONV if kind == "conv" else SWIN)
  task = tasks.make("restore", found.model)
  run = jax.jit(lambda image: task.restore(found.params, {"image": image}))
  return lambda image: np.asarray(run(np.asarray(image, np.float32)[None]))[0]


def picture(height, width, seed=0):
  """Values whose restored ones mostly lie within 0..1, so that clipping hides nothing."""
  return np.random.default_rng(seed).uniform(0.3, 0.7, (height, width, 3)).astype(np.float32)


def unclipped(model, image):
  """The share of numbers that clipping left alone, and they; checks that it is most."""
  found = model.restore(image)
  inside = (found > 0) & (found < 1)
  assert inside.mean() > 0.3
  return found, inside


@pytest.mark.parametrize("size", [(100, 53), (48, 97), (75, 49)])
def test_tiles_give_what_the_network_gives_of_the_whole_picture(size):
  """Convolutions that see 5 pixels to either side, a quarter of an overlap of 24 is 6."""
  image = picture(*size)
  found, inside = unclipped(conv(), image)
  want = at_once()(image)
  assert found.shape == want.shape == (2 * size[0], 2 * size[1], 3)
  # The same sums in other programs.
  np.testing.assert_allclose(found, np.clip(want, 0, 1), atol=1e-5)
  assert np.ptp(found[inside]) > 0.5


def test_with_too_small_an_overlap_the_tiles_differ_from_the_whole():
  """What the test above would see, were the outer parts of tiles used."""
  image = picture(94, 94)
  found = conv(overlap=2).restore(image)
  assert np.abs(found - np.clip(at_once()(image), 0, 1)).max() > 1e-3


def test_pictures_smaller_than_a_tile_are_continued_by_their_mirror_image():
  """To quarters of a tile, here 12."""
  image = picture(9, 20)
  mirrored = np.pad(image, [(0, 3), (0, 4), (0, 0)], mode="reflect")
  want = np.clip(at_once()(mirrored), 0, 1)[:18, :40]
  np.testing.assert_allclose(conv().restore(image), want, atol=1e-5)
  # A single pixel has a mirror image, too.
  assert conv().restore(picture(1, 1)).shape == (2, 2, 3)


def test_few_programs_serve_pictures_of_all_sizes():
  model = conv()
  assert {model.sides(size) for size in ((100, 53), (49, 48), (37, 900))} == {(48, 48)}
  every = [(h, w) for h in range(1, 60) for w in range(1, 60)]
  assert len({model.sides(size) for size in every}) == 16
  # Turned, a tile must be a tile.
  assert {h - w for h, w in map(conv(ensemble=True).sides, every)} == {0}


@pytest.mark.parametrize("net", [
  dict(name="unet", fields=dict(width=4, depth=1)),
  dict(name="swinir", fields=dict(width=4, depth=1, blocks=2, heads=1, window=8, tail="denoise"))])
def test_pictures_no_larger_than_a_multiple_are_restored(net):
  """They are one tile, alone and in eight positions."""
  found = loaded({"net": net | {"scale": 1}, "image_size": 16})
  for ensemble in (False, True):
    model = restoring.Restorer(found, tile=16, overlap=4, ensemble=ensemble)
    for size in ((1, 1), (8, 8), (3, 8)):
      assert model.count(size) == 1
      image = model.restore(picture(*size))
      assert image.shape == (*size, 3) and np.isfinite(image).all()


def test_sides_that_are_no_multiple_of_the_windows_are_restored():
  """Tiles begin where windows do: far from borders, those of the whole are those of the tile."""
  model = restoring.Restorer(loaded(SWIN), tile=16, overlap=8)
  image = picture(30, 19)
  found = model.restore(image)
  assert found.shape == (30, 19, 3)
  one = restoring.Restorer(loaded(SWIN), tile=32, overlap=8)
  padded = np.pad(image, [(0, 2), (0, 5), (0, 0)], mode="reflect")
  np.testing.assert_allclose(one.restore(image), np.clip(at_once("swin")(padded), 0, 1)[:30, :19],
                             atol=1e-5)
  assert np.isfinite(found).all() and np.ptp(found) > 0.2


@pytest.mark.parametrize("overlap", [0, 5, 8, 16])
@pytest.mark.parametrize("length", [32, 33, 47, 200])
def test_weights_of_tiles_add_up_to_one_and_fade_out_before_the_borders(length, overlap):
  starts = [*range(0, length - 32, 32 - overlap), length - 32]
  total = np.zeros(length * 3)
  for i, (start, weight) in enumerate(zip(starts, restoring._fades(starts, 32, overlap, 3))):
    total[start * 3:(start + 32) * 3] += weight
    assert (weight >= 0).all()
    margin = 3 * (overlap // 4)
    assert i == 0 or not weight[:margin].any()
    assert i == len(starts) - 1 or not weight[len(weight) - margin:].any()
  np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_ensemble_is_the_mean_over_all_eight_positions():
  image = picture(60, 49)
  found = conv(ensemble=True).restore(image)
  total = 0
  # Built here from transpositions and flips, the other generators of the same group.
  for swap in (False, True):
    for down in (1, -1):
      for across in (1, -1):
        x = image.swapaxes(0, 1) if swap else image
        y = at_once()(x[::down, ::across])[::down, ::across]
        total = total + (y.swapaxes(0, 1) if swap else y)
  np.testing.assert_allclose(found, np.clip(total / 8, 0, 1), atol=1e-5)
  assert np.abs(found - conv().restore(image)).max() > 1e-2


def test_whole_numbers_of_8_and_16_bits_are_read_by_their_white():
  image = np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)
  want = conv().restore((image / 255).astype(np.float32))
  np.testing.assert_allclose(conv().restore(image), want, atol=1e-6)
  np.testing.assert_allclose(conv().restore(image.astype(np.uint16) * 257), want, atol=1e-6)
  for wrong in (image.astype(np.int32), image[..., :2], image[:0]):
    with pytest.raises(ValueError, match="pixels are"):
      conv().restore(wrong)


@pytest.mark.parametrize("settings, message", [
  (dict(tile=30), "tile=30: expected a multiple of 4.*e.g. 32"),
  (dict(tile=16, overlap=9), "overlap=9: expected 0 to 8"),
  (dict(tile=4, overlap=1), "overlap=1: expected 0 to 0 for tile=4"),
  (dict(tile=16, overlap=4, member=1), "member=1: random has 1 network; expected 0 to 0"),
])
def test_impossible_tiles_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    restoring.Restorer(loaded(SWIN), **settings)


def test_of_a_population_the_member_is_taken_that_is_asked_for():
  model = CONV | {"seeds": [4, 6]}
  found = loaded(model)
  image = picture(16, 16)
  second = restoring.Restorer(found, tile=16, overlap=8, member=1).restore(image)
  task = tasks.make("restore", CONV)
  own = jax.tree.map(lambda x: x[1], found.params)
  want = np.clip(task.restore(own, {"image": image[None]})[0], 0, 1)
  np.testing.assert_allclose(second, want, atol=1e-5)


def test_a_model_that_the_whole_picture_steers_is_told_of_the_whole():
  """In tiles it gives what it gives at once: each tile alone would be steered by itself."""
  model = tiny_run.CDASR | {"align": dict(hidden=8, semantic=8, width=4, spatial="tile")}
  found, task = loaded(model, "cdasr"), tasks.make("cdasr", model)
  image = picture(97, 64)
  # Half of it dark: no tile is like the whole.
  image[:48] *= 0.4
  want = jax.jit(task.restore)(found.params, {"image": image[None]})[0]
  got = restoring.Restorer(found, tile=64, overlap=32).restore(image)
  np.testing.assert_allclose(got, np.clip(want, 0, 1), atol=1e-5)
  alone = jax.jit(task.restore)(found.params, {"image": image[None, :64]})[0]
  assert np.abs(alone[:40] - want[:40]).max() > 1e-3


class TestFiles:
  """Depth, alpha and orientation."""

  @pytest.mark.parametrize("suffix", [".png", ".tiff"])
  @pytest.mark.parametrize("channels", [1, 3, 4])
  def test_16_bits_are_read_as_they_are(self, tmp_path, suffix, channels):
    stored = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"p{suffix}"), stored)
    found = restoring_files.read(tmp_path / f"p{suffix}")
    colour = stored.repeat(3, -1) if channels == 1 else stored[..., 2::-1]
    np.testing.assert_array_equal(found.colour, colour)
    assert (found.alpha is None) == (channels < 4)
    if channels == 4:
      np.testing.assert_array_equal(found.alpha, stored[..., 3])

  @pytest.mark.parametrize("name, mode", [("p.png", "RGBA"), ("p.webp", "RGBA"), ("p.png", "LA"),
                                          ("p.tiff", "RGBA")])
  def test_alpha_is_kept_apart_from_colours(self, tmp_path, name, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
    found = restoring_files.read(tmp_path / name)
    want = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(found.colour, want[..., :3])
    np.testing.assert_array_equal(found.alpha, want[..., 3])

  def test_pictures_are_upright(self, tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 1000
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((deep // 257).astype(np.uint8)).save(tmp_path / "p.png", exif=exif)
    assert restoring_files.read(tmp_path / "p.png").colour.shape == (4, 2, 3)
    assert restoring_files.shape(tmp_path / "p.png") == (4, 2)
    # The same block in a file of 16 bits.
    good, data = cv2.imencode(".png", deep[..., ::-1])
    block = restoring_files._chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "deep.png").write_bytes(data.tobytes()[:33] + block + data.tobytes()[33:])
    found = restoring_files.read(tmp_path / "deep.png")
    np.testing.assert_array_equal(found.colour, np.rot90(deep, -1))

  def test_numbers_without_a_range_and_damaged_files_are_refused(self, tmp_path):
    cv2.imwrite(str(tmp_path / "float.tiff"), np.ones((4, 4, 3), np.float32))
    with pytest.raises(ImageError, match="float32.*8 or 16 bits a channel"):
      restoring_files.read(tmp_path / "float.tiff")
    cv2.imwrite(str(tmp_path / "deep.png"), np.ones((40, 40, 3), np.uint16) * 7)
    (tmp_path / "deep.png").write_bytes((tmp_path / "deep.png").read_bytes()[:60])
    with pytest.raises(ImageError, match="damaged or truncated"):
      restoring_files.read(tmp_path / "deep.png")

  def test_a_result_says_what_it_was_made_with_and_any_reader_reads_it(self, tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16):
      top = np.iinfo(dtype).max
      before = restoring_files.Picture(rng.integers(0, top, (6, 5, 3)).astype(dtype),
                                       rng.integers(0, top, (6, 5)).astype(dtype))
      restoring_files.write(tmp_path / "r.png", before, {"tile": 3, "name": "é"})
      after = restoring_files.read(tmp_path / "r.png")
      np.testing.assert_array_equal(after.colour, before.colour)
      np.testing.assert_array_equal(after.alpha, before.alpha)
      assert restoring_files.made_with(tmp_path / "r.png") == {"tile": 3, "name": "é"}
    with Image.open(tmp_path / "r.png") as image:
      assert image.text
    Image.new("RGB", (3, 3)).save(tmp_path / "other.png")
    assert restoring_files.made_with(tmp_path / "other.png") == {}
    assert restoring_files.made_with(tmp_path / "none.png") is None

  def test_alpha_grows_with_its_picture(self):
    alpha = np.random.default_rng(0).integers(0, 65536, (9, 8)).astype(np.uint16)
    found = restoring_files.enlarged(alpha, 2)
    want = np.asarray(Image.fromarray(alpha.astype(np.float32)).resize((16, 18), Image.BICUBIC))
    assert found.dtype == np.uint16 and found.shape == (18, 16)
    # Along borders Pillow renormalises and we mirror.
    np.testing.assert_allclose(found[4:-4, 4:-4], np.clip(np.rint(want), 0, 65535)[4:-4, 4:-4],
                               atol=1)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
  return tiny_run.save(tmp_path_factory.mktemp("restore"), name="restore")


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  (folder / "deep").mkdir(parents=True)
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (21, 40, 3), np.uint8)).save(folder / "a.png")
  Image.fromarray(rng.integers(0, 256, (20, 18, 4), np.uint8), "RGBA").save(folder / "alpha.png")
  cv2.imwrite(str(folder / "deep" / "b.tiff"), rng.integers(0, 65536, (17, 9, 3)).astype(np.uint16))
  (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
  return folder


def command(run_folder, photos, out, *more):
  return encode.main(["--task", "restore", "--workdir", str(run_folder), "--image", str(photos),
                      "--out", str(out), "--tile", "16", "--overlap", "4", *more])


def test_a_folder_is_restored_resumed_and_not_mixed(run_folder, photos, tmp_path, capsys):
  out = tmp_path / "out"
  assert command(run_folder, photos, out) == 1
  said = capsys.readouterr()
  assert "left out" in said.err and "broken.jpg" in said.err and "3 pictures restored" in said.out
  names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
  assert names == {f"{n}{kind}.png" for n in ("a", "alpha", "deep/b")
                   for kind in ("", ".before_after")}
  assert restoring_files.read(out / "a.png").colour.shape == (42, 80, 3)
  deep = restoring_files.read(out / "deep" / "b.png")
  assert deep.colour.dtype == np.uint16 and deep.colour.shape == (34, 18, 3)
  # More than 8 bits are in it.
  assert len(np.unique(deep.colour)) > 300
  alpha = restoring_files.read(photos / "alpha.png").alpha
  np.testing.assert_array_equal(restoring_files.read(out / "alpha.png").alpha,
                                restoring_files.enlarged(alpha, 2))
  # What is there is not made again, what is missing is.
  (out / "alpha.png").unlink()
  before = (out / "a.png").stat().st_mtime_ns
  (photos / "broken.jpg").unlink()
  assert command(run_folder, photos, out) == 0
  assert "1 pictures restored" in (said := capsys.readouterr().out) and "2 were there" in said
  assert (out / "alpha.png").exists() and (out / "a.png").stat().st_mtime_ns == before
  assert command(run_folder, photos, out, "--ensemble") == 2
  assert "was made with ensemble=False" in capsys.readouterr().err
  assert command(run_folder, photos, out, "--ensemble", "--overwrite", "--no-pictures") == 0
  assert restoring_files.made_with(out / "a.png")["ensemble"] is True


def test_a_result_does_not_depend_on_the_pictures_beside_it(run_folder, photos, tmp_path):
  """Smaller than a tile: a tile of its own, however large others are."""
  for what, name in ((photos / "alpha.png", "alone"), (photos, "beside")):
    command(run_folder, what, tmp_path / name, "--tile", "32", "--no-pictures")
  alone, beside = ((tmp_path / name / "alpha.png").read_bytes() for name in ("alone", "beside"))
  assert alone == beside


def test_what_is_written_is_what_the_model_makes(run_folder, photos, tmp_path):
  assert command(run_folder, photos / "a.png", tmp_path / "out", "--batch", "2",
                 "--no-pictures") == 0
  assert not list((tmp_path / "out").glob("*.before_after.png"))
  model = restoring.Restorer(run_folder, tile=16, overlap=4)
  found = model.restore(restoring_files.read(photos / "a.png").colour)
  written = restoring_files.read(tmp_path / "out" / "a.png").colour
  # Rounded to the nearest of 255; ties fall to either side by the rounding of sums.
  assert np.abs(written - found * 255.0).max() < 0.5 + 1e-3


@pytest.mark.parametrize("more, message", [
  (("--looks", "2"), "--looks=2: means nothing with --task restore"),
  (("--crops", "grid"), "--crops=grid: is of --task quality"),
  (("--tile", "0"), "--tile=0: expected a number of at least 1"),
  (("--overlap", "9"), "overlap=9: expected 0 to 8"),
])
def test_options_that_mean_nothing_are_refused(run_folder, photos, tmp_path, capsys, more, message):
  assert command(run_folder, photos, tmp_path / "out", *more) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_pictures_are_never_replaced_by_results(run_folder, photos, capsys):
  assert command(run_folder, photos, photos) == 2
  assert "give a folder of its own" in capsys.readouterr().err
  assert encode.main(["--tile", "8", "--workdir", str(run_folder), "--image", str(photos), "--out",
                      str(photos / "x")]) == 2
  assert "--tile=8: is of --task restore" in capsys.readouterr().err
  # Within the folder that is searched, results are no pictures of a later run.
  out = photos / "restored"
  command(run_folder, photos, out)
  assert command(run_folder, photos, out) == 1
  assert "3 were there already" in capsys.readouterr().out


def test_a_model_that_restores_nothing_is_refused(tmp_path):
  run = tiny_run.save(tmp_path / "run", name="focusmim")
  with pytest.raises(ValueError, match="is of task 'focusmim', which restores no pictures"):
    restoring.Restorer(run)


def test_the_sheet_shows_where_most_has_changed():
  before = np.full((400, 300, 3), 100, np.uint8)
  after = before.repeat(2, 0).repeat(2, 1)
  after[2 * 210:2 * 250, 2 * 150:2 * 200] = 200
  y, x = restoring_run.most_changed(before, after, 80)
  assert y <= 210 and y + 80 >= 250 and x <= 150 and x + 80 >= 200
  page = restoring_run.sheet(before, after, "name")
  assert page.dtype == np.uint8 and page.shape[1] > 4 * 300
  deep = restoring_run.sheet(before.astype(np.uint16) * 257, after.astype(np.uint16) * 257, "name")
  np.testing.assert_array_equal(page, deep)
