"""Networks that make a better picture of a picture, by name: `build(name, scale, **fields)`.

Pictures are float32 RGB in 0..1, (b, y, x, 3). Every network is called the same way:

    y, out = net.apply({"params": params}, x)          # y (b, y * scale, x * scale, 3)
    features = net.apply(..., x, method="features")    # (b, y, x, c), which are out["features"]
    y = net.apply(..., features, x, method="reconstruct")

Sides must be multiples of `net.multiple`; who calls it pads. `layers.Restorer` says the rest.
"""

import difflib
import importlib
from typing import Any

# name -> (module, class)
NETS: dict[str, tuple[str, str]] = {
  "msrresnet": ("residual", "MSRResNet"),
  "edsr": ("residual", "EDSR"),
  "swinir": ("swinir", "SwinIR"),
  "swinir_light": ("swinir", "SwinIR"),
  "unet": ("unet", "UNet"),
  "restormer": ("restormer", "Restormer"),
}


def build(name: str, scale: int = 1, **fields: Any) -> Any:
  """The network called `name`, a `layers.Restorer`.

  Args:
    name: one of `NETS`.
    scale: how many times larger sides become.
    **fields: of the class, where it shall not be the published network; lists count as tuples.

  Raises:
    ValueError: there is no such network or field, or a value is impossible; it says which.
  """
  if name not in NETS:
    raise ValueError(f"net {name!r} is unknown{_near(name, NETS)}; it is one of {', '.join(NETS)}.")
  module, cls = NETS[name]
  net = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
  known = [f for f in net.__dataclass_fields__ if f not in ("parent", "name")]
  if unknown := [f for f in fields if f not in known]:
    raise ValueError(f"net {name!r} has no field {unknown[0]!r}{_near(unknown[0], known)}; it has "
                     f"{', '.join(known)}.")
  fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  return net.checked(**net.published(name, scale, fields) | {"scale": scale} | fields)


def _near(name: str, known) -> str:
  near = difflib.get_close_matches(str(name), list(known), 1)
  return f" (is {near[0]!r} meant?)" if near else ""
