"""How others make the same row of a batch: a PIL pipeline, and big_vision's operations without TF.

Nothing here is shared with the input pipeline but the record and the drawn crop: decoding,
resizing, boxes and tokens are written again, so that equal results mean something.
"""

import io

import cv2
import numpy as np
from PIL import Image

from input_pipeline import examples, records


def pil_pixels(data: bytes, crop: tuple[int, int, int, int], side: int, clock) -> np.ndarray:
  """torchvision's RandomResizedCrop of a PIL image: decode, crop, bicubic with antialiasing."""
  x, y, w, h = crop
  with clock.part("decode"):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.load()
  with clock.part("crop"):
    image = image.crop((x, y, x + w, y + h))
  with clock.part("resize"):
    image = image.resize((side, side), Image.Resampling.BICUBIC)
  with clock.part("batch"):
    return np.asarray(image)


def big_vision_pixels(data: bytes, crop: tuple[int, int, int, int], side: int,
                      clock) -> np.ndarray:
  """big_vision's decode, crop and resize: bilinear, not antialiased, rounded down to uint8.

  With OpenCV's functions for TensorFlow's.
  """
  x, y, w, h = crop
  with clock.part("decode"):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  with clock.part("resize"):
    return cv2.resize(pixels[y:y + h, x:x + w], (side, side), interpolation=cv2.INTER_LINEAR)


def box(sample: records.Sample, drawn: examples.Draw, side: int) -> np.ndarray:
  """The region's box in the resized crop, as torchvision's tv_tensors crop, resize and clamp it."""
  if drawn.region is None:
    return np.array([0, 0, side, side], np.float32)
  x, y, w, h = drawn.crop
  x0, y0, x1, y1 = (float(v) for v in sample.boxes[drawn.region])
  moved = [(x0 - x) * side / w, (y0 - y) * side / h, (x1 - x) * side / w, (y1 - y) * side / h]
  return np.array([min(max(v, 0.0), side) for v in moved], np.float32)


def byte_tokens(caption: str, length: int) -> np.ndarray:
  """UTF-8 bytes + 3, the end, padding."""
  ids = [b + 3 for b in caption.encode()][:length - 1] + [1]
  return np.array(ids + [0] * (length - len(ids)), np.int32)
