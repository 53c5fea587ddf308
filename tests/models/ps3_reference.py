"""PS3 once more, in float64 NumPy, written from the specification and without any shortcut.

Every scale is resized as a whole, every patch embedded, ground truth is a painted mask, and
tokens are chosen by sorting Python tuples. Shares only NumPy's ViT with the other tests.
"""

import math

import numpy as np

from tests.models import vit_reference as ref


def cubic_matrix(n_in, n_out, a=-0.75):
  out = np.zeros((n_out, n_in))
  for i in range(n_out):
    source = (i + 0.5) * n_in / n_out - 0.5
    for j in range(math.floor(source) - 1, math.floor(source) + 3):
      d = abs(source - j)
      if d <= 1:
        w = (a + 2) * d**3 - (a + 3) * d**2 + 1
      else:
        w = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
      out[i, min(max(j, 0), n_in - 1)] += w
  return out


def resize(image, size):
  rows, cols = cubic_matrix(image.shape[1], size[0]), cubic_matrix(image.shape[2], size[1])
  return np.einsum("hy,byxc,wx->bhwc", rows, image.astype(np.float64), cols)


def resize_antialias(image, size):
  rows, cols = (ref.cubic_weights(n, m) for n, m in zip(image.shape[1:3], size))
  return np.einsum("hy,byxc,wx->bhwc", rows, image.astype(np.float64), cols)


def pool(x, size, reduce):
  """Adaptive pooling of (b, y, x), window by window."""
  out = np.zeros((x.shape[0], *size))
  for i in range(size[0]):
    for j in range(size[1]):
      y = slice(math.floor(i * x.shape[1] / size[0]), math.ceil((i + 1) * x.shape[1] / size[0]))
      z = slice(math.floor(j * x.shape[2] / size[1]), math.ceil((j + 1) * x.shape[2] / size[1]))
      out[:, i, j] = reduce(x[:, y, z], axis=(1, 2))
  return out


def nearest(x, size):
  rows = [i * x.shape[1] // size[0] for i in range(size[0])]
  cols = [j * x.shape[2] // size[1] for j in range(size[1])]
  return x[:, rows][:, :, cols]


def paint(box, image_hw):
  """(b, 4) boxes -> (b, y, x) masks of ones."""
  mask = np.zeros((len(box), *image_hw))
  for one, (x0, y0, x1, y1) in zip(mask, box):
    one[max(math.floor(y0), 0) : math.ceil(y1) + 1, max(math.floor(x0), 0) : math.ceil(x1) + 1] = 1
  return mask


def unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def encoder(p, x, kv=None):
  """Raw outputs of all blocks, and their keys and values."""
  hidden, cache = [], []
  for i in range(sum(key.startswith("encoderblock_") for key in p)):
    q = p[f"encoderblock_{i}"]
    y = ref.layer_norm(q["LayerNorm_0"], x)
    mha = q["MultiHeadDotProductAttention_0"]
    cache.append((ref.project(mha["key"], y), ref.project(mha["value"], y)))
    x = ref.block(q, x, ref.gelu, None if kv is None else kv[i])
    hidden.append(x)
  return hidden, cache


def depthwise(p, x):
  padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
  out = np.zeros_like(x)
  for i in range(7):
    for j in range(7):
      out += padded[:, i : i + x.shape[1], j : j + x.shape[2]] * p["kernel"][i, j, 0]
  return out + p["bias"]


def conv3x3(p, x):
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1:3]
  return p["bias"] + sum(
    padded[:, i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(3) for j in range(3)
  )


def adapter(p, x):
  x = ref.project(p["fc1"], x)
  for i in range(sum(key.startswith("block_") for key in p)):
    q = p[f"block_{i}"]
    x = x + ref.project(q["fc"], ref.gelu(ref.layer_norm(q["norm"], x, 1e-5)))
  return ref.project(p["fc2"], ref.gelu(ref.layer_norm(p["out_norm"], x, 1e-5)))


class Reference:
  """The model of parameters `p` (nested dicts, float64) and settings `c` (a PS3Vision)."""

  def __init__(self, p, c):
    self.p, self.c = p, c
    self.g = c.scales[0] // c.patch_size

  def normalise(self, x):
    return (x / 255 - self.c.mean) / self.c.std

  def sizes(self, hw):
    base, p, out = self.c.scales[0], self.c.patch_size, []
    for s in self.c.scales[1:]:
      long = base * (s // base)
      short = max(int(base / max(hw) * min(hw)) // p, 1) * p * (s // base)
      out.append((long, short) if hw[0] >= hw[1] else (short, long))
    return out

  def grids(self, hw):
    return [(h // self.c.patch_size, w // self.c.patch_size) for h, w in self.sizes(hw)]

  def positions(self, grid):
    side = max(grid)
    if self.c.posemb_fit == "crop":
      table = self.p["pos_embedding"][0].reshape(*self.c.posemb_grid, -1)
      return table[: grid[0], : grid[1]].reshape(grid[0] * grid[1], -1)
    table = ref.positions(self.p["pos_embedding"][0], self.c.posemb_grid, (side, side))
    return table.reshape(side, side, -1)[: grid[0], : grid[1]].reshape(grid[0] * grid[1], -1)

  def low(self, image):
    how = resize_antialias if self.c.low_antialias else resize
    x = self.normalise(how(image, (self.c.scales[0],) * 2))
    x = ref.convolve_patches(self.p["embedding"], x) + self.positions((self.g, self.g))
    hidden, kv = encoder(self.p["Transformer"], x)
    return hidden, kv, self.attend_pool(hidden[-1])

  def attend_pool(self, x, mask=None):
    y = ref.layer_norm(self.p["Transformer"]["encoder_norm"], x) if self.c.final_norm else x
    if self.c.adapter_hidden:
      y = adapter(self.p["pool_adapter"], y)
    return ref.map_head(self.p["MAPHead_0"], y, ref.gelu, mask)

  def score(self, image, hidden, prompt=None):
    p, c = self.p, self.c
    prompt = np.repeat(p["prior_prompt"][None], len(image), 0) if prompt is None else prompt
    q = p["selection_feature_proj"]
    x = np.concatenate([hidden[i] for i in c.select_layers], -1)
    x = ref.layer_norm(q["norm"], ref.gelu(ref.project(q["fc1"], x)), 1e-5)
    x = ref.project(q["fc2"], x).reshape(-1, self.g, self.g, len(c.scales) - 1, c.width)
    scores = [np.einsum("byxc,bc->byx", unit(x[..., i, :]), unit(prompt))
              for i in range(len(c.scales) - 1)]
    if c.highres_branch:
      q = p["highres_selection"]
      how = resize_antialias if c.selection_antialias else resize
      z = self.normalise(how(image, (c.selection_size,) * 2))
      n = c.selection_size // c.selection_kernel
      z = ref.convolve_patches(q["stem"], z).reshape(len(z), n, n, -1)
      z = ref.layer_norm(q["stem_norm"], z)
      for i in range(c.selection_depth):
        b = q[f"block_{i}"]
        y = ref.layer_norm(b["norm"], depthwise(b["conv_dw"], z))
        z = z + b["scale"] * ref.project(b["fc2"], ref.gelu(ref.project(b["fc1"], y)))
      z = ref.project(q["out_proj"], z)
      asked = ref.project(p["prompt_proj_for_highres"], prompt)
      for i in range(len(scores)):
        fine = asked[:, i * c.selection_out : (i + 1) * c.selection_out]
        fine = np.einsum("byxc,bc->byx", unit(z), unit(fine))
        scores[i] = (scores[i] + pool(fine, (self.g, self.g), np.max)) / 2
    return 5 * (scores[0] if c.selection_maps == "first" else np.stack(scores, 1))

  def maps(self, score, hw, box=None):
    """Probability per scale, forced ones set to one, and the painted and dilated ground truth."""
    grids = self.grids(hw)
    score = [score[:, i] if score.ndim == 4 else score for i in range(len(grids))]
    prob = [nearest(1 / (1 + np.exp(-s)), grid) for s, grid in zip(score, grids)]
    forced = [np.zeros(x.shape, bool) for x in prob]
    if box is not None:
      first = pool(paint(box, hw), self.grids(hw)[0], np.mean)
      forced = [nearest(first, grid) > 0 for grid in grids]
      if self.c.budget_rule == "cells":
        forced = [pool(paint(box, hw), grid, np.mean) > 0 for grid in grids]
    return prob, forced

  def sequence(self, prob, forced):
    """The tokens (scale, raster index) of each sample, in the order of the rule "cells"."""
    zooms = [s // self.c.scales[0] for s in self.c.scales[1:]]
    rows, cols = (n // zooms[0] for n in prob[0].shape[1:])
    out = []
    for b in range(len(prob[0])):
      cells = []
      for y in range(rows):
        for x in range(cols):
          at = [(slice(y * z, y * z + z), slice(x * z, x * z + z)) for z in zooms]
          share = np.mean([f[b][w].mean() for f, w in zip(forced, at)])
          score = np.mean([m[b][w].mean() for m, w in zip(prob, at)])
          # Rounded: the model's float32 sums tie where these may differ in the last bit.
          cells.append((-round(share, 6), -score, y, x))
      tokens = []
      for *_, y, x in sorted(cells):
        for s, z in enumerate(zooms):
          tokens += [(s, (y * z + i) * cols * z + x * z + j) for i in range(z) for j in range(z)]
      out.append(tokens)
    return out

  def choose_cells(self, prob, forced, counts):
    """Like `choose`, under the rule "cells": looks are pieces of one sequence."""
    looks, start = [], 0
    every = self.sequence(prob, forced)
    for n in (sum(look) for look in counts):
      looks.append([np.array([sorted(i for scale, i in tokens[start : start + n] if scale == s)
                              for tokens in every]) for s in range(len(prob))])
      start += n
    return looks

  def later(self, score, prompt, tokens, looks, hw):
    """Scores for the next look, from the last features `tokens[look]` of the looks before."""
    p, b, g, grids = self.p["later_looks"], len(score), self.g, self.grids(hw)
    prompt = np.repeat(self.p["prior_prompt"][None], b, 0) if prompt is None else prompt
    sums, count, total = np.zeros((b, g, g, self.c.width)), np.zeros((b, g, g)), np.zeros((g, g))
    for h, w in grids:
      for y in range(h):
        for x in range(w):
          total[y * g // h, x * g // w] += 1
    for x, look in zip(tokens, looks):
      place = [(s, i) for s, at in enumerate(look) for i in range(at.shape[1])]
      for n in range(b):
        for t, (s, i) in enumerate(place):
          row, col = divmod(int(look[s][n, i]), grids[s][1])
          cell = n, row * g // grids[s][0], col * g // grids[s][1]
          sums[cell] += x[n, t]
          count[cell] += 1
    seen = count > 0
    mean = sums / np.maximum(count, 1)[..., None]
    found = ref.project(p["read"], ref.layer_norm(p["read_norm"], mean))
    asked = ref.project(p["ask"], ref.layer_norm(p["ask_norm"], prompt))
    match = found * asked[:, None, None] * seen[..., None]
    overall = np.stack([m[at].mean(0) for m, at in zip(match, seen)])
    maps = score.reshape(b, -1, g, g)
    x = np.concatenate([maps.transpose(0, 2, 3, 1) / 5, (count / total)[..., None], match], -1)
    x = conv3x3(p["near"], x) + ref.project(p["whole"], overall)[:, None, None]
    x = ref.gelu(conv3x3(p["far"], ref.gelu(x))) @ p["out"]
    return np.clip(maps + x.transpose(0, 3, 1, 2), -10, 10).reshape(score.shape)

  def choose(self, prob, forced, counts):
    """Raster indices (b, k) per look and scale, from `counts[look][scale]`."""
    looks = [[[] for _ in prob] for _ in counts]
    for s, (chance, force) in enumerate(zip(prob, forced)):
      h, w = chance.shape[1:]
      for b in range(len(chance)):

        def key(i, b=b, h=h, w=w, chance=chance, force=force):
          y, x = divmod(i, w)
          cell = (y * self.g // h) * self.g + x * self.g // w
          return not force[b, y, x], -chance[b, y, x], cell, i

        order = sorted(range(h * w), key=key)
        start = 0
        for look, count in zip(looks, counts):
          look[s].append(sorted(order[start : start + count[s]]))
          start += count[s]
    return [[np.array(x, int).reshape(len(prob[0]), -1) for x in look] for look in looks]

  def high(self, image, kv, index):
    hw, tokens = image.shape[1:3], []
    for s, (size, grid) in enumerate(zip(self.sizes(hw), self.grids(hw))):
      x = ref.convolve_patches(self.p["embedding"], self.normalise(resize(image, size)))
      side = self.c.scales[s + 1] // self.c.patch_size
      residual = self.p[f"pos_emb_residual_{s}"].reshape(side, side, -1)[: grid[0], : grid[1]]
      x = x + self.positions(grid) + residual.reshape(grid[0] * grid[1], -1)
      tokens.append(np.take_along_axis(x, index[s][:, :, None], 1))
    return encoder(self.p["Transformer"], np.concatenate(tokens, 1), kv)[0]

  def encode(self, image, counts, prompt=None, box=None):
    """Last raw features of low and all chosen tokens in place, indices per look, the score."""
    hw = image.shape[1:3]
    hidden, kv, _ = self.low(image)
    score = self.score(image, hidden, prompt)
    choose = self.choose_cells if self.c.budget_rule == "cells" else self.choose
    looks = choose(*self.maps(score, hw, box), counts)
    grids = self.grids(hw)
    full = [np.full((len(image), h * w, self.c.width), np.nan) for h, w in grids]
    for look in looks:
      x, start = self.high(image, kv, look)[-1], 0
      for s, at in enumerate(look):
        np.put_along_axis(full[s], at[:, :, None], x[:, start : start + at.shape[1]], 1)
        start += at.shape[1]
    full = np.concatenate(full, 1)
    chosen = [row[~np.isnan(row[:, 0])] for row in full]
    return np.concatenate([hidden[-1], np.stack(chosen)], 1), looks, score

  def train(self, image, counts, prompt, box, is_global, pool_gt):
    hw = image.shape[1:3]
    hidden, kv, pooled_low = self.low(image)
    score = self.score(image, hidden, prompt)
    choose = self.choose_cells if self.c.budget_rule == "cells" else self.choose
    (look,) = choose(*self.maps(score, hw, box), [counts])
    tokens = self.high(image, kv, look)[-1]
    mask = None
    if pool_gt:
      truth = [pool(paint(box, hw), g, np.mean).reshape(len(image), -1) > 0 for g in self.grids(hw)]
      mask = np.concatenate([np.take_along_axis(t, at, 1) for t, at in zip(truth, look)], 1)
    return np.where(is_global[:, None], pooled_low, self.attend_pool(tokens, mask))
