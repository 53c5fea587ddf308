import pytest

from input_pipeline import input_config, records


@pytest.mark.parametrize(
  "changes, says",
  [
    ({"image_size": 0}, "input.image_size is 0, expected a whole number of at least 1"),
    ({"image_size": 32.0}, "input.image_size is 32.0"),
    ({"text_len": True}, "input.text_len is True"),
    ({"prefetch": 0}, "input.prefetch is 0"),
    ({"max_boxes": -1}, "input.max_boxes is -1"),
    ({"global_share": 1.5}, "input.global_share is 1.5, expected a share between 0 and 1"),
    ({"max_skip_share": "few"}, "input.max_skip_share is 'few'"),
    ({"crop_scale": (0.9, 1.1)}, "input.crop_scale is .* above 0 and up to 1"),
    ({"crop_scale": (0, 1.0)}, "input.crop_scale"),
    ({"crop_ratio": (2.0, 1.0)}, r"input.crop_ratio is \(2.0, 1.0\), expected two numbers"),
    ({"crop_ratio": 1.0}, "input.crop_ratio is 1.0"),
    ({"crop_ratio": "12"}, "input.crop_ratio is '12'"),
    ({"canonicalize": 1}, "input.canonicalize is 1, expected True or False"),
    ({"enlarge": False, "captions": False}, "input.enlarge is False with crop='resized'"),
    ({"split": None}, "input.split is None, expected text"),
    ({"data": ""}, "input.data is '', expected a directory or"),
    ({"data": {}}, "input.data is {}"),
    ({"data": {"vg": "/dir"}}, "input.data.vg is '/dir', expected {\"path\": directory"),
    ({"data": {"vg": {"path": "/d", "wieght": 1}}}, "input.data.vg has 'wieght'; known are"),
    ({"data": {"vg": {"path": "/d", "weight": 0}}}, "input.data.vg.weight is 0, expected a number"),
    ({"data": {"vg": {"path": "/d", "weight": float("nan")}}}, "input.data.vg.weight is nan"),
  ],
)
def test_a_setting_that_cannot_be_followed_is_named_with_its_value(changes, says):
  with pytest.raises(input_config.InputError, match=says):
    input_config.InputConfig(**{"data": "/somewhere", **changes})


def test_defaults_are_those_of_the_paper():
  config = input_config.InputConfig("/somewhere")
  assert (config.image_size, config.text_len, config.global_share) == (1512, 64, 0.25)
  assert tuple(config.crop_scale) == (0.9, 1.0)
  assert config.crop_ratio[0] == 3 / 4 and config.crop_ratio[1] == pytest.approx(4 / 3)


def test_size_is_summed_over_the_data_sets_of_a_split(make_dataset, make_sample):
  a = make_dataset({"train": [make_sample(i) for i in range(3)], "val": [make_sample(9)]}, "a")
  b = make_dataset({"train": [make_sample(i) for i in range(4)]}, "b")
  both = {"a": {"path": a}, "b": {"path": b, "weight": 0.5}}
  assert input_config.dataset_size(input_config.InputConfig(a)) == 3
  assert input_config.dataset_size(input_config.InputConfig(both)) == 7
  members = input_config.open_members(input_config.InputConfig(both))
  assert [(m.name, m.weight, len(m.source)) for m in members] == [("a", 1.0, 3), ("b", 0.5, 4)]
  with pytest.raises(records.DatasetError, match="b has no split 'val'; it has 'train'"):
    input_config.dataset_size(input_config.InputConfig(both, split="val"))
