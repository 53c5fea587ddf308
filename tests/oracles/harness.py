"""How do tests talk to PyTorch? Through scripts in this directory, run where PyTorch is.

`big_vision_ext/benches/peers/environment.py` makes the environments and carries the arrays. Here
is what tests need: whatever fails raises `OracleError` with what the child said, so that a parity
test fails and never skips.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.benches.peers import environment as peers

HERE = pathlib.Path(__file__).resolve().parent
OracleError = peers.PeerError
environment = peers.environment


def run(
  script: str,
  *,
  env: str,
  arrays: Mapping[str, np.ndarray] | None = None,
  settings: Any = None,
  files: str | os.PathLike | None = None,
  timeout: float = 600,
) -> dict[str, np.ndarray]:
  """Runs an oracle's script and returns its arrays.

  Args:
    script: file name in this directory.
    env: its requirements are `requirements-{env}.txt`.
    arrays, settings, files, timeout: see `environment.run`.

  Raises:
    OracleError: no environment, an exception in the script, or too slow; with what it printed.
  """
  return peers.run(HERE / script, python=environment(env), arrays=arrays, settings=settings,
                   files=files, timeout=timeout)
