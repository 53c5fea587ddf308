"""How much arithmetic does a model need, and what share of the chip's peak does a run reach?

Counted are multiplications and additions of matrix products and convolutions in one forward pass
of one sample; not norms, softmax, activations or resizing. Training costs three forward passes
for what is trained and one for what is frozen; rematerialisation does not count, it is how a
program was compiled and not what the model needs. All counts are exact integers.

T tokens, K keys, D width, F mlp width, L layers:
  block       8 T D^2 + 4 T K D + 4 T D F     (projections, scores and values, mlp)
  patches     2 T c p^2 D
  MAP head    4 T D^2 + 4 T D + 4 D^2 + 4 D F
"""

import re
from collections.abc import Sequence

# Peak of one jax device in dense bfloat16, FLOP/s, by its device_kind; vendors' data sheets. A
# device is a chip, but for TPU v2, v3 and v7x, where it is half of one.
_PEAKS = (
  (r"TPU v3", 61.5e12),
  (r"TPU v4", 275e12),
  (r"TPU v5 ?(lite|e).*", 197e12),
  (r"TPU v5p?", 459e12),
  (r"TPU v6 ?(lite|e).*", 918e12),
  (r"TPU ?7x", 1153.5e12),
  (r"(NVIDIA )?A100.*", 312e12),
  (r"(NVIDIA )?H100 80GB HBM3|(NVIDIA )?H100 SXM.*", 989e12),
)


def peak(device_kind: str) -> float | None:
  """Peak FLOP/s of one device of this kind (`jax.devices()[0].device_kind`), None if not known."""
  return next((p for pattern, p in _PEAKS if re.fullmatch(pattern, device_kind)), None)


def train(trained: int, frozen: int = 0) -> int:
  """FLOPs of a training step per sample, from the forward FLOPs of trained and frozen parts."""
  return 3 * trained + frozen


def mfu(
  flops_per_sample: float, samples_per_second: float, devices: int, device_kind: str
) -> float | None:
  """Model FLOPs utilisation, 0..1, or None for a device whose peak is not known (CPUs).

  Args:
    flops_per_sample: of a whole step, as from `train`.
    samples_per_second: of all devices together.
    devices: number of devices.
    device_kind: their kind.
  """
  top = peak(device_kind)
  return None if top is None else flops_per_sample * samples_per_second / (devices * top)


def block(tokens: int, width: int, mlp_dim: int, cached: int = 0) -> int:
  """One transformer block, attending to its own tokens and to `cached` keys of others."""
  attend = 4 * tokens * (tokens + cached) * width
  return 8 * tokens * width**2 + attend + 4 * tokens * width * mlp_dim


def patches(tokens: int, width: int, patch_size: int, channels: int = 3) -> int:
  """Patch embedding."""
  return 2 * tokens * channels * patch_size**2 * width


def map_head(tokens: int, width: int, mlp_dim: int) -> int:
  """Attention pooling by one probe: keys and values, scores, query and output, mlp."""
  return 4 * tokens * width**2 + 4 * tokens * width + 4 * width**2 + 4 * width * mlp_dim


def vit(
  *,
  tokens: int,
  width: int,
  depth: int,
  mlp_dim: int,
  patch_size: int,
  pool_type: str = "map",
  rep_size: int = 0,
  num_classes: int = 0,
  pooled_only: bool = False,
) -> int:
  """A vision transformer on one image of `tokens` patches.

  With `pooled_only` the last block has the queries, outputs and mlp of the class token alone.
  """
  total = patches(tokens, width, patch_size)
  seen = tokens + (pool_type == "tok")
  total += depth * block(seen, width, mlp_dim)
  if pooled_only and pool_type == "tok":
    keys = 4 * seen * width**2
    total += block(1, width, mlp_dim, seen - 1) + keys - 4 * width**2 - block(seen, width, mlp_dim)
  if pool_type == "map":
    total += map_head(tokens, width, mlp_dim)
  vectors = tokens if pool_type == "none" else 1
  sizes = [size for size in (rep_size, num_classes) if size]
  return total + vectors * _chain([width, *sizes])


def mae(
  *,
  visible: int,
  targets: int,
  num_cls: int,
  width: int,
  depth: int,
  mlp_dim: int,
  patch_size: int,
  decoder: str,
  decoder_width: int,
  decoder_depth: int,
  decoder_mlp_dim: int,
) -> int:
  """A masked autoencoder on one image: `visible` patches encoded, `targets` predicted.

  Patches that are not seen are not embedded. `decoder` is "self" or "cross"; the latter mixes the
  outputs of all encoder blocks, which counts as a product.
  """
  seen, e = visible + num_cls, decoder_width
  total = patches(visible, width, patch_size) + depth * block(seen, width, mlp_dim)
  pred = 2 * targets * e * 3 * patch_size**2
  if decoder == "self":
    total += 2 * seen * width * e + decoder_depth * block(seen + targets, e, decoder_mlp_dim)
    # The prediction is made of the visible patches as well, but nobody reads it: not counted.
    return total + pred
  cross = 4 * targets * e**2 + 4 * seen * width * e + 4 * targets * seen * e
  mlp = 4 * targets * e * decoder_mlp_dim
  mix = 2 * (depth + 1) * seen * width
  return total + decoder_depth * (cross + mlp + mix) + pred


def conv_autoencoder(
  image_size: int, down: Sequence[tuple[int, int, int]], up: Sequence[tuple[int, int, int]]
) -> tuple[int, int]:
  """Encoder and decoder of residual blocks on one square image (`models/focusmim.py`).

  A block has two 3 x 3 convolutions, of which the first strides, and a 1 x 1 one where its width
  changes. Products with the zeros between the pixels of a transposed convolution do not count.

  Args:
    image_size: side in pixels.
    down, up: (channels in, channels out, stride) of each block; those of `up` enlarge.
  """
  side, totals = image_size, []
  for blocks, grows in ((down, False), (up, True)):
    total = 0
    for c, d, stride in blocks:
      after = side * stride if grows else side // stride
      strided = min(side, after) ** 2
      total += 2 * (strided * (9 * c * d + (c * d if c != d else 0)) + after**2 * 9 * d * d)
      side = after
    totals.append(total)
  return totals[0], totals[1]


def looks(
  *,
  patches_seen: int,
  spans: Sequence[tuple[int, int]],
  steps: Sequence[tuple[int, int]],
  width: int,
  depth: int,
  mlp_dim: int,
  patch_size: int,
  decoder_width: int,
  decoder_depth: int,
  decoder_mlp_dim: int,
  outputs: int,
) -> int:
  """A model of fixations on one image: some looks encoded, some targets predicted.

  Args:
    patches_seen: patches embedded, of all looks.
    spans: tokens of each group of the sequence, and the keys that they read.
    steps: targets of each step, and the keys that they read; none for encoding alone.
    width, depth, mlp_dim, patch_size: of the encoder.
    decoder_width, decoder_depth, decoder_mlp_dim: of the predictor.
    outputs: numbers predicted for a target.
  """
  total = patches(patches_seen, width, patch_size)
  total += depth * sum(block(n, width, mlp_dim, keys - n) for n, keys in spans)
  if not steps:
    return total
  e, targets = decoder_width, sum(n for n, _ in steps)
  seen = sum(n for n, _ in spans)
  cross = 4 * targets * e**2 + 4 * seen * width * e + sum(4 * n * keys * e for n, keys in steps)
  mlp = 4 * targets * e * decoder_mlp_dim
  mix = 2 * (depth + 1) * seen * width
  return total + decoder_depth * (cross + mlp + mix) + 2 * targets * e * outputs


def text(
  *,
  text_len: int,
  width: int,
  depth: int,
  mlp_dim: int,
  out_dim: int = 0,
  pool_type: str = "last",
) -> int:
  """A text transformer on one text."""
  total = depth * block(text_len, width, mlp_dim)
  if pool_type == "map":
    total += map_head(text_len, width, mlp_dim)
  return total + (_chain([width, out_dim]) if out_dim else 0)


def contrastive(batch_size: int, width: int) -> int:
  """A sample's share of the similarities of all images with all texts of the batch."""
  return 2 * batch_size * width


def ps3(
  *,
  scales: Sequence[int],
  selected: Sequence[int],
  width: int,
  depth: int,
  mlp_dim: int,
  patch_size: int,
  num_select_layers: int = 4,
  num_prompts: int = 1,
  num_maps: int = 1,
  policy_hidden: int = 0,
  selection_size: int = 1512,
  selection_hidden: int = 512,
  selection_out: int = 512,
  selection_depth: int = 3,
  selection_kernel: int = 28,
  highres_selection: bool = True,
  adapter_hidden: int = 0,
  adapter_depth: int = 0,
  pool_width: int = 0,
  pool_mlp_dim: int = 0,
) -> dict[str, int]:
  """PS3 on one square image, by part (Shi et al. 2025, sec. 3).

  Args:
    scales: image sizes in pixels, smallest first.
    selected: tokens of each look; looks do not see each other.
    width, depth, mlp_dim, patch_size: of the transformer.
    num_select_layers: layers whose outputs the selection reads.
    num_prompts: prompts scored; 2 if the text's and the learned one both are.
    num_maps: score maps of a prompt; as many as there are higher scales if each has its own.
    policy_hidden: width of the policy that scores each look but the first anew; 0 for none.
    selection_size, selection_hidden, selection_out, selection_depth, selection_kernel: of the
      convolutional branch that looks at the high resolution before selection.
    highres_selection: whether that branch exists.
    adapter_hidden, adapter_depth: of the adapter before pooling; 0 if there is none.
    pool_width, pool_mlp_dim: of the pooling head; 0 for those of the transformer.

  Returns:
    `low` (transformer and pooling on the smallest scale), `select`, `high` (all looks, with
    pooling over all their tokens) and `total`.
  """
  grid = (scales[0] // patch_size) ** 2

  def pooling(tokens):
    to = pool_width or width
    adapter = [width, adapter_hidden, *[adapter_hidden] * adapter_depth, to]
    head = map_head(tokens, to, pool_mlp_dim or mlp_dim)
    return head + (tokens * _chain(adapter) if adapter_hidden else 0)

  sizes = dict(width=width, depth=depth, mlp_dim=mlp_dim, patch_size=patch_size)
  low = vit(tokens=grid, pool_type="none", **sizes) + pooling(grid)
  features = num_select_layers * width
  # Of the output, one slice of `width` per scale, only those that are used are computed.
  maps = num_maps
  select = grid * (_chain([features, features, width * maps]) + 2 * width * num_prompts * maps)
  if highres_selection:
    cells, hidden = (selection_size // selection_kernel) ** 2, selection_hidden
    inner = 2 * 7 * 7 * hidden + _chain([hidden, 4 * hidden, hidden])
    stem = 2 * 3 * selection_kernel**2 * hidden
    last = _chain([hidden, selection_out]) + 2 * selection_out * num_prompts * maps
    select += cells * (stem + selection_depth * inner + last)
    select += _chain([width, selection_out * maps]) * num_prompts
  if policy_hidden:
    h = policy_hidden
    per_cell = _chain([width, h]) + 9 * _chain([maps + 1 + h, h, h]) + _chain([h, maps])
    each = grid * per_cell + _chain([width, h]) + _chain([h, h])
    select += max(len(selected) - 1, 0) * num_prompts * each
  high = sum(
    patches(n, width, patch_size) + depth * block(n, width, mlp_dim, grid) for n in selected
  )
  if sum(selected):
    high += pooling(sum(selected))
  return {"low": low, "select": select, "high": high, "total": low + select + high}


def _chain(sizes: Sequence[int]) -> int:
  """Linear layers from width to width on one vector."""
  return sum(2 * a * b for a, b in zip(sizes, sizes[1:]))
