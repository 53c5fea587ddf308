"""FocusMIM's autoencoder in float64 NumPy, from the definitions, under PyTorch's names and layouts.

Images are (b, c, y, x). A transposed convolution is written as what it is: every input pixel
scatters its kernel.
"""

import numpy as np


def conv(x, weight, bias, stride, pad):
  """Weight (out, in, k, k)."""
  k = weight.shape[-1]
  x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  rows, cols = ((n - k) // stride + 1 for n in x.shape[2:])
  out = np.zeros((len(x), len(weight), rows, cols)) + bias[:, None, None]
  for i in range(k):
    for j in range(k):
      part = x[:, :, i:i + stride * rows:stride, j:j + stride * cols:stride]
      out += np.einsum("bcyx,oc->boyx", part[:, :, :rows, :cols], weight[:, :, i, j])
  return out


def conv_transpose(x, weight, bias, stride, pad, output_padding):
  """Weight (in, out, k, k)."""
  k = weight.shape[-1]
  b, _, rows, cols = x.shape
  whole = np.zeros((b, weight.shape[1], *(stride * (n - 1) + k + output_padding
                                          for n in (rows, cols))))
  for i in range(rows):
    for j in range(cols):
      at = np.s_[:, :, stride * i:stride * i + k, stride * j:stride * j + k]
      whole[at] += np.einsum("bc,cokl->bokl", x[:, :, i, j], weight)
  height, width = (n - 2 * pad for n in whole.shape[2:])
  return whole[:, :, pad:pad + height, pad:pad + width] + bias[:, None, None]


def block(state, name, x, stride, transposed):
  get = lambda layer: (np.float64(state[f"{name}.{layer}.weight"]),
                       np.float64(state[f"{name}.{layer}.bias"]))
  if transposed:
    y = conv_transpose(x, *get("upconv1"), stride, 1, stride - 1)
    y = conv_transpose(np.maximum(y, 0), *get("upconv2"), 1, 1, 0)
  else:
    y = conv(x, *get("conv1"), stride, 1)
    y = conv(np.maximum(y, 0), *get("conv2"), 1, 1)
  if x.shape[1] == y.shape[1]:
    return y + x
  if transposed:
    return y + conv_transpose(x, *get("match_dim"), stride, 0, stride - 1)
  return y + conv(x, *get("match_dim"), stride, 0)


def forward(state, x):
  """(image (b, 3, y, x), latent (b, c, y / 8, x / 8)) of three stages of three blocks."""
  for i in range(9):
    x = np.maximum(block(state, f"encoder.{2 * i}", x, 2 if i % 3 == 0 else 1, False), 0)
  latent = x
  for i in range(9):
    x = block(state, f"decoder.{2 * i}", x, 2 if i % 3 == 2 else 1, True)
    x = np.maximum(x, 0) if i < 8 else 1 / (1 + np.exp(-x))
  return x, latent
