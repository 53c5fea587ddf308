"""Masked models that no library at hand has, as PyTorch functions of their descriptions, float64.

I-JEPA (Assran et al. 2023, sec. 3), CrossMAE (Fu et al. 2024, sec. 3) and Pixio's autoencoder
(arXiv 2512.15715; MAE with several class tokens). Settings: a list of cases with a `kind`, `heads`,
`patch` and `grid`; arrays are `CASE/images` (b, y, x, 3), normalised, `CASE/visible` and
`CASE/target`, indices of patches, and `CASE/param/NAME`, PyTorch's (out, in). Gives, for each case,
`loss`, `predicted` and `grad/NAME` of every parameter that has one.
"""

import math

import exchange
import torch


def main(arrays, settings):
  torch.set_num_threads(1)
  out = {}
  for case in settings:
    name, found = case["name"], {}
    get = lambda key, name=name: torch.from_numpy(arrays[f"{name}/{key}"])
    p = {n.removeprefix(f"{name}/param/"): torch.from_numpy(x).double().requires_grad_()
         for n, x in arrays.items() if n.startswith(f"{name}/param/")}
    x = get("images").double().permute(0, 3, 1, 2)
    found["loss"], found["predicted"] = KINDS[case["kind"]](
      p, x, get("visible").long(), get("target").long(), case)
    found["loss"].backward()
    found |= {f"grad/{n}": t.grad for n, t in p.items() if t.grad is not None}
    out |= {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}
  return out


def linear(p, name, x):
  return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def standard(x, eps):
  x = x - x.mean(-1, keepdim=True)
  return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def norm(p, name, x):
  return standard(x, 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(p, name, x):
  h = linear(p, f"{name}.fc1", x)
  return linear(p, f"{name}.fc2", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))


def attend(q, k, v, heads):
  """Of (b, t, d) each: heads lie one after another in d."""
  cut = lambda z: z.reshape(*z.shape[:2], heads, -1).permute(0, 2, 1, 3)
  q, k, v = cut(q), cut(k), cut(v)
  weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), -1)
  return (weights @ v).permute(0, 2, 1, 3).flatten(2)


def block(p, name, x, heads):
  q, k, v = linear(p, f"{name}.attn.qkv", norm(p, f"{name}.norm1", x)).chunk(3, -1)
  x = x + linear(p, f"{name}.attn.proj", attend(q, k, v, heads))
  return x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x))


def blocks(p, name, x, heads):
  """The outputs of all blocks, and before them the input."""
  out, i = [x], 0
  while f"{name}.{i}.norm1.weight" in p:
    out.append(block(p, f"{name}.{i}", out[-1], heads))
    i += 1
  return out


def embed(p, prefix, images):
  kernel, bias = p[f"{prefix}patch_embed.proj.weight"], p[f"{prefix}patch_embed.proj.bias"]
  return torch.nn.functional.conv2d(images, kernel, bias, kernel.shape[-1]).flatten(2).mT


def rows(x, index):
  return torch.stack([one[at] for one, at in zip(x, index)])


def waves(grid, width):
  """Fixed positions, one number at a time: columns first, sine before cosine."""
  out = torch.zeros(grid[0] * grid[1], width, dtype=torch.float64)
  quarter = width // 4
  for y in range(grid[0]):
    for x in range(grid[1]):
      for half, at in enumerate((x, y)):
        for k in range(quarter):
          angle = at / 10000 ** (k / quarter)
          row = out[y * grid[1] + x]
          row[half * 2 * quarter + k], row[half * 2 * quarter + quarter + k] = (
            math.sin(angle), math.cos(angle))
  return out


def ijepa(p, images, visible, target, case):
  heads, asked_heads = case["heads"], case["predictor_heads"]

  def encode(prefix, index=None):
    x = embed(p, prefix, images) + p[f"{prefix}pos_embed"]
    x = x if index is None else rows(x, index)
    return norm(p, f"{prefix}norm", blocks(p, f"{prefix}blocks", x, heads)[-1])

  with torch.no_grad():
    wanted = standard(encode("target_encoder."), 1e-5)
  seen = linear(p, "predictor.predictor_embed", encode("encoder.", visible))
  table = waves(case["grid"], seen.shape[-1])
  seen = seen + table[visible]
  predicted, hidden = [], []
  for g in range(target.shape[1]):
    asked = p["predictor.mask_token"] + table[target[:, g]]
    x = torch.cat([seen, asked], 1)
    x = blocks(p, "predictor.predictor_blocks", x, asked_heads)[-1]
    x = norm(p, "predictor.predictor_norm", x)[:, seen.shape[1]:]
    predicted.append(linear(p, "predictor.predictor_proj", x))
    hidden.append(rows(wanted, target[:, g]))
  predicted, hidden = torch.stack(predicted, 1), torch.stack(hidden, 1)
  far = (predicted - hidden).abs()
  return torch.where(far < 1, far.square() / 2, far - 0.5).mean(), predicted


def encoded(p, images, visible, heads):
  """Outputs of the encoder's blocks and before, class tokens first, of the visible patches."""
  count = p["cls_token"].shape[1]
  x = embed(p, "", images) + p["pos_embed"][:, count:]
  cls = (p["cls_token"] + p["pos_embed"][:, :count]).expand(len(x), -1, -1)
  return blocks(p, "blocks", torch.cat([cls, rows(x, visible)], 1), heads)


def pixel_loss(predicted, images, target, patch):
  """Mean squared error to patches that are normalised each, by the unbiased variance."""
  b, c, h, w = images.shape
  cut = images.reshape(b, c, h // patch, patch, w // patch, patch)
  cut = rows(cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c), target)
  wanted = (cut - cut.mean(-1, keepdim=True)) / (cut.var(-1, keepdim=True) + 1e-6).sqrt()
  return (predicted - wanted).square().mean()


def crossmae(p, images, visible, target, case):
  sources = encoded(p, images, visible, case["heads"])
  x = p["mask_token"] + p["decoder_pos_embed"][0][target]
  i = 0
  while f"decoder_blocks.{i}.norm1.weight" in p:
    name = f"decoder_blocks.{i}"
    mixed = sum(w * s for w, s in zip(p["mix"][:, i], sources))
    mixed = norm(p, f"source_norms.{i}", mixed)
    q = linear(p, f"{name}.q", norm(p, f"{name}.norm1", x))
    found = attend(q, linear(p, f"{name}.k", mixed), linear(p, f"{name}.v", mixed),
                   case["decoder_heads"])
    x = x + linear(p, f"{name}.proj", found)
    x = x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x))
    i += 1
  predicted = linear(p, "decoder_pred", norm(p, "decoder_norm", x))
  return pixel_loss(predicted, images, target, case["patch"]), predicted


def pixio(p, images, visible, target, case):
  y = norm(p, "norm", encoded(p, images, visible, case["heads"])[-1])
  y = linear(p, "decoder_embed", y)
  count = p["cls_token"].shape[1]
  n = p["decoder_pos_embed"].shape[1] - count
  # Every place has a mask token, but for those that are seen.
  x = p["mask_token"].expand(len(y), n, -1).clone()
  for i, at in enumerate(visible):
    x[i, at] = y[i, count:]
  x = torch.cat([y[:, :count], x], 1) + p["decoder_pos_embed"]
  x = blocks(p, "decoder_blocks", x, case["decoder_heads"])[-1]
  x = linear(p, "decoder_pred", norm(p, "decoder_norm", x))[:, count:]
  predicted = rows(x, target)
  return pixel_loss(predicted, images, target, case["patch"]), predicted


KINDS = {"ijepa": ijepa, "crossmae": crossmae, "pixio": pixio}

if __name__ == "__main__":
  exchange.serve(main)
