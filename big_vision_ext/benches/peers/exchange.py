"""The peer's side of `environment.run`: arrays and settings in, arrays out. Imports NumPy only."""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def serve(main: Callable[[dict[str, np.ndarray], Any], Mapping[str, np.ndarray]],
          where: str | None = None) -> None:
  """Calls `main(arrays, settings)` and hands over the arrays it returns, by name.

  `where` is the directory of the exchange, the script's argument if None.
  """
  where = pathlib.Path(where or sys.argv[1])
  with np.load(where / "input.npz") as arrays:
    out = main(dict(arrays), json.loads((where / "settings.json").read_text()))
  np.savez(where / "output.npz", **out)
