"""What is a kind of device called in configs?"""

import re

_NAMES = (
  (r"cpu", "cpu"),
  (r"TPU v2", "v2"),
  (r"TPU v3", "v3"),
  (r"TPU v4( lite)?", "v4"),
  (r"TPU v5 ?(lite|e).*", "v5e"),
  (r"TPU v5p?", "v5p"),
  (r"TPU v6 ?(lite|e).*", "v6e"),
  (r"TPU ?v?7.*", "tpu7x"),
  (r"(NVIDIA )?A100.*", "a100"),
  (r"(NVIDIA )?H100.*", "h100"),
  (r"(NVIDIA )?H200.*", "h200"),
  (r"(NVIDIA )?B200.*", "b200"),
)
NAMES = tuple(name for _, name in _NAMES)


def name(device_kind: str) -> str | None:
  """One of `NAMES` for `jax.devices()[0].device_kind`; None for a kind that has no name here."""
  return next((name for pattern, name in _NAMES if re.fullmatch(pattern, device_kind)), None)
