"""The transformers once more, in float64 NumPy, written from the papers' formulas.

Nothing here shares code with the models: loops over heads, a convolution over pixels, a resize by
its kernel. Parameters are nested dicts in the loop layout.
"""

import numpy as np
from scipy import special


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def gelu(x):
  return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))


def gelu_tanh(x):
  return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(p, x, eps=1e-6):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def attend(q, k, v, mask=None):
  """(b, t, h, k) arrays, one sample and head at a time; an all-false mask is full."""
  out = np.zeros(q.shape)
  for b in range(q.shape[0]):
    keep = np.ones(k.shape[1], bool) if mask is None or not mask[b].any() else mask[b]
    for h in range(q.shape[2]):
      scores = q[b, :, h] @ k[b, keep, h].T / np.sqrt(q.shape[-1])
      out[b, :, h] = softmax(scores) @ v[b, keep, h]
  return out


def project(p, x, contract=1):
  axes = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract)))
  return np.tensordot(x, p["kernel"], axes) + p["bias"]


def attention(p, x, y, kv=None, mask=None):
  q, k, v = project(p["query"], x), project(p["key"], y), project(p["value"], y)
  if kv is not None:
    k, v = np.concatenate([kv[0], k], 1), np.concatenate([kv[1], v], 1)
  return project(p["out"], attend(q, k, v, mask), 2)


def mlp(p, x, act):
  return project(p["Dense_1"], act(project(p["Dense_0"], x)))


def block(p, x, act=gelu_tanh, kv=None):
  y = layer_norm(p["LayerNorm_0"], x)
  x = x + attention(p["MultiHeadDotProductAttention_0"], y, y, kv)
  return x + mlp(p["MlpBlock_0"], layer_norm(p["LayerNorm_1"], x), act)


def encoder(p, x, act=gelu_tanh):
  for i in range(sum(key.startswith("encoderblock_") for key in p)):
    x = block(p[f"encoderblock_{i}"], x, act)
  return layer_norm(p["encoder_norm"], x)


def map_head(p, x, act=gelu_tanh, mask=None):
  probe = np.repeat(p["probe"], x.shape[0], 0)
  x = attention(p["MultiHeadDotProductAttention_0"], probe, x, mask=mask)
  return (x + mlp(p["MlpBlock_0"], layer_norm(p["LayerNorm_0"], x), act))[:, 0]


def convolve_patches(p, image):
  """Stride equals size; (b, t, d) tokens in raster order, rest of the image left out."""
  ph, pw, _, d = p["kernel"].shape
  gh, gw = image.shape[1] // ph, image.shape[2] // pw
  out = np.zeros((image.shape[0], gh, gw, d))
  for y in range(gh):
    for x in range(gw):
      for i in range(ph):
        for j in range(pw):
          out[:, y, x] += image[:, y * ph + i, x * pw + j] @ p["kernel"][i, j]
  return out.reshape(image.shape[0], gh * gw, d) + p["bias"]


def cubic_weights(n_in, n_out, a=-0.5):
  """(n_out, n_in) matrix of an antialiased cubic resize whose border taps are dropped."""
  scale = max(n_in / n_out, 1.0)
  out = np.zeros((n_out, n_in))
  for i in range(n_out):
    center = (i + 0.5) * n_in / n_out
    for j in range(n_in):
      d = abs(j + 0.5 - center) / scale
      if d <= 1:
        out[i, j] = (a + 2) * d**3 - (a + 3) * d**2 + 1
      elif d < 2:
        out[i, j] = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
  return out / out.sum(1, keepdims=True)


def positions(table, grid, size):
  """Table of a square or other grid -> (h*w, d) for `size`: cover it, then crop."""
  (h, w), (gh, gw) = grid, size
  scale = max(gh / h, gw / w)
  rows, cols = cubic_weights(h, round(h * scale)), cubic_weights(w, round(w * scale))
  table = np.einsum("ay,yxd,bx->abd", rows, table.reshape(h, w, -1), cols)
  return table[:gh, :gw].reshape(gh * gw, -1)


def vit(p, image, grid, act=gelu_tanh):
  """Image -> pooled vector, normed tokens."""
  ph, pw = p["embedding"]["kernel"].shape[:2]
  x = convolve_patches(p["embedding"], image)
  x = x + positions(p["pos_embedding"][0], grid, (image.shape[1] // ph, image.shape[2] // pw))
  x = encoder(p["Transformer"], x, act)
  return map_head(p["MAPHead_0"], x, act), x


def text(p, ids, act=gelu_tanh):
  """Ids -> normed tokens."""
  return encoder(p["Encoder_0"], p["Embed_0"]["embedding"][ids] + p["pos_embedding"], act)
