"""Commands take large pages where the system has them for who asks, and change nothing else."""

import os
import pathlib
import subprocess
import sys

import pytest

from big_vision_ext.core import huge_pages

# On a system of which it says that it has large pages for who asks.
MODULE = '''
import os, pathlib, sys
from big_vision_ext.core import huge_pages
huge_pages._SETTING = pathlib.Path("enabled")
huge_pages.restart(__spec__)
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
'''


@pytest.fixture
def start(tmp_path):
  """Starts a module, or a script; gives its number and what it says of itself."""
  (tmp_path / "started.py").write_text(MODULE)
  (tmp_path / "enabled").write_text("always [madvise] never")
  root = pathlib.Path(__file__).parents[2]

  def run(*how, **variables):
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | variables
    child = subprocess.Popen([sys.executable, *how, "a b", "-m"], text=True, cwd=tmp_path,
                             stdout=subprocess.PIPE, env=env | {"PYTHONPATH": str(root)})
    number, rest = child.communicate()[0].split(" ", 1)
    assert child.returncode == 0 and int(number) == child.pid
    assert rest.startswith("['a b', '-m'] ")
    return rest.removeprefix("['a b', '-m'] ").strip()

  return run


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them")
def test_a_command_starts_itself_again_with_large_pages_under_its_own_number(start):
  assert start("-m", "started") == "glibc.malloc.hugetlb=1"
  other = "glibc.malloc.check=0"
  assert start("-m", "started", GLIBC_TUNABLES=other) == f"{other}:glibc.malloc.hugetlb=1"


def test_what_the_user_says_of_pages_holds(start):
  assert start("-m", "started", GLIBC_TUNABLES="glibc.malloc.hugetlb=0").endswith("=0")


def test_what_was_not_started_as_this_module_is_left_alone(start):
  assert start("started.py") == "None"


@pytest.mark.parametrize("setting", ["always [never] madvise", "[always] never madvise", None])
def test_nothing_is_done_where_it_would_change_nothing(monkeypatch, tmp_path, setting):
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
  if setting:
    (tmp_path / "enabled").write_text(setting)
  assert not huge_pages._missing()
