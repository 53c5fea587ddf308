"""MSRResNet, EDSR, SwinIR and Restormer in PyTorch, built from their descriptions.

Names are those of the published files, which load strictly; pictures are (b, 3, y, x) in 0..1.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)

  def forward(self, x):
    return x + self.conv2(self.conv1(x).relu())


def upsampler(c, scale):
  steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
  return nn.Sequential(*(m for r in steps for m in (nn.Conv2d(c, c * r * r, 3, 1, 1),
                                                    nn.PixelShuffle(r))))


class MSRResNet(nn.Module):
  def __init__(self, width, depth, scale):
    super().__init__()
    self.scale, self.steps = scale, [2, 2] if scale == 4 else [scale]
    self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
    self.body = nn.Sequential(*(Residual(width) for _ in range(depth)))
    for i, r in enumerate(self.steps):
      setattr(self, f"upconv{i + 1}", nn.Conv2d(width, width * r * r, 3, 1, 1))
    self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
    self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)

  def forward(self, x):
    act = lambda y: F.leaky_relu(y, 0.1)
    y = self.body(act(self.conv_first(x)))
    for i, r in enumerate(self.steps):
      y = act(F.pixel_shuffle(getattr(self, f"upconv{i + 1}")(y), r))
    base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
    return self.conv_last(act(self.conv_hr(y))) + (base if self.scale > 1 else x)


class EDSR(nn.Module):
  def __init__(self, width, depth, scale, mean, img_range):
    super().__init__()
    self.mean, self.img_range = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1), img_range
    self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
    self.body = nn.Sequential(*(Residual(width) for _ in range(depth)))
    self.conv_after_body = nn.Conv2d(width, width, 3, 1, 1)
    self.upsample = upsampler(width, scale)
    self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)

  def forward(self, x):
    mean = self.mean.to(x.dtype)
    x = self.conv_first((x - mean) * self.img_range)
    x = x + self.conv_after_body(self.body(x))
    return self.conv_last(self.upsample(x)) / self.img_range + mean


def cut(x, w):
  """(b, y, x, c) -> (b * n, w * w, c), windows in raster order."""
  b, h, v, c = x.shape
  x = x.view(b, h // w, w, v // w, w, c)
  return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)


def join(x, w, h, v):
  x = x.view(-1, h // w, v // w, w, w, x.shape[-1])
  return x.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], h, v, -1)


def shifted_mask(h, v, w):
  """-100 between pixels of a window that are of different parts of the picture before the roll."""
  label, count = torch.zeros(1, h, v, 1), 0
  parts = (slice(0, -w), slice(-w, -(w // 2)), slice(-(w // 2), None))
  for rows in parts:
    for columns in parts:
      label[:, rows, columns] = count
      count += 1
  label = cut(label, w).squeeze(-1)
  return (label[:, None] != label[:, :, None]).float() * -100


class Attention(nn.Module):
  def __init__(self, c, w, heads):
    super().__init__()
    self.heads = heads
    self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * w - 1) ** 2, heads))
    at = torch.cartesian_prod(torch.arange(w), torch.arange(w))
    apart = at[:, None] - at[None] + w - 1
    self.register_buffer("relative_position_index", apart[..., 0] * (2 * w - 1) + apart[..., 1])
    self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

  def forward(self, x, mask):
    n, t, c = x.shape
    q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5
    scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(
      2, 0, 1)
    if mask is not None:
      scores = scores.view(-1, len(mask), self.heads, t, t) + mask[:, None]
    scores = scores.reshape(n, self.heads, t, t)
    return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))


class SwinBlock(nn.Module):
  def __init__(self, c, w, heads, hidden, shifted, side):
    super().__init__()
    self.w, self.shift, self.side = w, w // 2 if shifted else 0, side
    self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
    self.attn = Attention(c, w, heads)
    self.mlp = nn.ModuleDict({"fc1": nn.Linear(c, hidden), "fc2": nn.Linear(hidden, c)})
    self.register_buffer("attn_mask", shifted_mask(side, side, w) if shifted else None)

  def forward(self, x):
    _, h, v, _ = x.shape
    y = self.norm1(x)
    y = y.roll((-self.shift, -self.shift), (1, 2)) if self.shift else y
    mask = self.attn_mask
    if self.shift and (h, v) != (self.side, self.side):
      mask = shifted_mask(h, v, self.w).to(x.dtype)
    y = join(self.attn(cut(y, self.w), mask), self.w, h, v)
    x = x + (y.roll((self.shift, self.shift), (1, 2)) if self.shift else y)
    return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Group(nn.Module):
  def __init__(self, c, w, heads, hidden, blocks, side):
    super().__init__()
    self.residual_group = nn.Module()
    self.residual_group.blocks = nn.ModuleList(
      SwinBlock(c, w, heads, hidden, i % 2 == 1, side) for i in range(blocks))
    self.conv = nn.Conv2d(c, c, 3, 1, 1)

  def forward(self, x):
    y = x
    for block in self.residual_group.blocks:
      y = block(y)
    return x + last(self.conv(first(y)))


def first(x):
  return x.permute(0, 3, 1, 2)


def last(x):
  return x.permute(0, 2, 3, 1)


class SwinIR(nn.Module):
  def __init__(self, width, depth, blocks, heads, window, mlp_ratio, tail, scale, tail_width=64,
               side=16):
    super().__init__()
    self.tail = tail
    self.mean = torch.tensor((0.4488, 0.4371, 0.4040), dtype=torch.float64).view(1, 3, 1, 1)
    self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
    self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
    self.layers = nn.ModuleList(Group(width, window, heads, int(width * mlp_ratio), blocks, side)
                                for _ in range(depth))
    self.norm = nn.LayerNorm(width)
    self.conv_after_body = nn.Conv2d(width, width, 3, 1, 1)
    if tail == "pixelshuffle":
      self.conv_before_upsample = nn.Sequential(nn.Conv2d(width, tail_width, 3, 1, 1),
                                                nn.LeakyReLU())
      self.upsample = upsampler(tail_width, scale)
    if tail == "pixelshuffledirect":
      self.upsample = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, 1, 1),
                                    nn.PixelShuffle(scale))
    else:
      self.conv_last = nn.Conv2d(tail_width if tail == "pixelshuffle" else width, 3, 3, 1, 1)

  def forward(self, x):
    mean = self.mean.to(x.dtype)
    x = x - mean
    start = self.conv_first(x)
    y = self.patch_embed["norm"](last(start))
    for layer in self.layers:
      y = layer(y)
    y = start + self.conv_after_body(first(self.norm(y)))
    if self.tail == "denoise":
      y = x + self.conv_last(y)
    elif self.tail == "pixelshuffledirect":
      y = self.upsample(y)
    else:
      y = self.conv_last(self.upsample(self.conv_before_upsample(y)))
    return y + mean


class PixelNorm(nn.Module):
  """Over channels; named as in Restormer's files, `body.weight` and perhaps `body.bias`."""

  def __init__(self, c, bias):
    super().__init__()
    self.body = nn.Module()
    self.body.weight = nn.Parameter(torch.ones(c))
    if bias:
      self.body.bias = nn.Parameter(torch.zeros(c))

  def forward(self, x):
    x = last(x)
    spread = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    if hasattr(self.body, "bias"):
      x = (x - x.mean(-1, keepdim=True)) / spread * self.body.weight + self.body.bias
    else:
      x = x / spread * self.body.weight
    return first(x)


def bare(c, d, size=3, groups=1):
  return nn.Conv2d(c, d, size, 1, size // 2, groups=groups, bias=False)


class Channels(nn.Module):
  def __init__(self, c, heads):
    super().__init__()
    self.heads = heads
    self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
    self.qkv, self.qkv_dwconv = bare(c, 3 * c, 1), bare(3 * c, 3 * c, groups=3 * c)
    self.project_out = bare(c, c, 1)

  def forward(self, x):
    b, c, h, w = x.shape
    q, k, v = (part.reshape(b, self.heads, c // self.heads, h * w)
               for part in self.qkv_dwconv(self.qkv(x)).chunk(3, 1))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
    return self.project_out((scores.softmax(-1) @ v).reshape(b, c, h, w))


class Gated(nn.Module):
  def __init__(self, c, hidden):
    super().__init__()
    self.project_in = bare(c, 2 * hidden, 1)
    self.dwconv = bare(2 * hidden, 2 * hidden, groups=2 * hidden)
    self.project_out = bare(hidden, c, 1)

  def forward(self, x):
    a, gate = self.dwconv(self.project_in(x)).chunk(2, 1)
    return self.project_out(F.gelu(a) * gate)


class RestormerBlock(nn.Module):
  def __init__(self, c, heads, ratio, bias):
    super().__init__()
    self.norm1, self.attn = PixelNorm(c, bias), Channels(c, heads)
    self.norm2, self.ffn = PixelNorm(c, bias), Gated(c, int(c * ratio))

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.ffn(self.norm2(x))


class Restormer(nn.Module):
  def __init__(self, width, depth, refinement, heads, mlp_ratio, norm_bias):
    super().__init__()
    stack = lambda c, i, n: nn.Sequential(
      *(RestormerBlock(c, heads[i], mlp_ratio, norm_bias) for _ in range(n)))
    step = lambda c, d, shuffle: nn.ModuleDict({"body": nn.Sequential(bare(c, d), shuffle)})
    self.patch_embed = nn.ModuleDict({"proj": bare(3, width)})
    for i in range(3):
      c = width * 2**i
      setattr(self, f"encoder_level{i + 1}", stack(c, i, depth[i]))
      setattr(self, f"down{i + 1}_{i + 2}", step(c, c // 2, nn.PixelUnshuffle(2)))
      setattr(self, f"up{i + 2}_{i + 1}", step(2 * c, 4 * c, nn.PixelShuffle(2)))
      setattr(self, f"decoder_level{i + 1}", stack(max(c, 2 * width), i, depth[i]))
      if i:
        setattr(self, f"reduce_chan_level{i + 1}", bare(2 * c, c, 1))
    self.latent = stack(8 * width, 3, depth[3])
    self.refinement = stack(2 * width, 0, refinement)
    self.output = bare(2 * width, 3)

  def forward(self, x):
    y, kept = self.patch_embed["proj"](x), []
    for i in (1, 2, 3):
      kept.append(getattr(self, f"encoder_level{i}")(y))
      y = getattr(self, f"down{i}_{i + 1}")["body"](kept[-1])
    y = self.latent(y)
    for i in (3, 2, 1):
      y = torch.cat([getattr(self, f"up{i + 1}_{i}")["body"](y), kept[i - 1]], 1)
      y = getattr(self, f"reduce_chan_level{i}")(y) if i > 1 else y
      y = getattr(self, f"decoder_level{i}")(y)
    return self.output(self.refinement(y)) + x


KINDS = {"msrresnet": MSRResNet, "edsr": EDSR, "swinir": SwinIR, "restormer": Restormer}
