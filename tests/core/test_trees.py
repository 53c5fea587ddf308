import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import trees

TREE = {"img": {"fc": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}, "t": np.zeros(())}
NAMES = ["img/fc/bias", "img/fc/kernel", "t"]


def test_names_are_slash_paths_and_nest_undoes_flatten():
  assert trees.names(TREE) == NAMES
  assert trees.names(({"a": 1}, [2])) == ["0/a", "1/0"]
  assert trees.names({"a": None, "b": 1}) == ["b"]
  assert trees.names(trees.nest(trees.flatten(TREE))) == NAMES
  assert trees.map_with_names(lambda n, x, y: (n, x + y), {"a": 1}, {"a": 2}) == {"a": ("a", 3)}


def test_the_first_pattern_that_matches_the_whole_name_wins():
  got = trees.first_match([(".*/kernel", 1), ("img/.*", 2)], NAMES, 0, "config.x")
  assert got == {"img/fc/bias": 2, "img/fc/kernel": 1, "t": 0}
  # big_vision's patterns end in $, which changes nothing.
  assert trees.first_match([(".*/kernel$", 1)], NAMES, 0, "x")["img/fc/kernel"] == 1


@pytest.mark.parametrize("pattern,message", [
    ("fc/kernel", "config.x: the pattern 'fc/kernel' matches no parameter.*img/fc/kernel"),
    ("img/(", r"config.x: 'img/\(' is no regular expression"),
])
def test_a_useless_pattern_is_an_error(pattern, message):
  with pytest.raises(trees.PatternError, match=message):
    trees.first_match([(pattern, 1)], NAMES, 0, "config.x")


def test_a_pattern_that_only_earlier_ones_hide_is_allowed():
  assert trees.first_match([(".*", 1), ("t", 2)], NAMES, 0, "x")["t"] == 1


def test_the_overview_names_every_parameter_and_the_total():
  text = trees.overview({"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)})
  assert "a " in text and "(2, 3)" in text and "10" in text.splitlines()[-1]
  assert trees.count(TREE) == 10
  long = trees.overview({f"p{i:03d}": jnp.zeros(1) for i in range(200)}, limit=20)
  assert len(long.splitlines()) == 20 + 1 and "more rows" in long
