"""A data set of tiny rated pictures whose score is how little noise they have, for tests."""

import io

import numpy as np
from PIL import Image

from input_pipeline import ratings, records
from input_pipeline.build import writer

LEVELS = 5
# As the prompts of UniQA have them.
WORDS = ("bad", "poor", "fair", "good", "perfect")
MOS = (1.0, 5.0)


def pixels(number: int, height: int = 36, width: int = 52) -> np.ndarray:
  """A smooth picture of its reference under noise of its level; levels are strengths 0 to 4."""
  reference, level = divmod(number, LEVELS)
  rng = np.random.default_rng([3, reference])
  y, x = np.mgrid[:height, :width] / 10.0
  phase, wave = rng.uniform(0, 6, 3), rng.uniform(0.5, 2, (3, 2))
  smooth = np.stack([np.sin(wave[c, 0] * y + wave[c, 1] * x + phase[c]) for c in range(3)], -1)
  noise = np.random.default_rng([4, number]).normal(0, 12 * level, smooth.shape)
  return np.clip(127 + 60 * smooth + noise, 0, 255).astype(np.uint8)


def sample(number: int, lower_better: bool = False, broken: bool = False,
           described: bool = False) -> records.Sample:
  """Picture `number`: five in a row are of one reference, from the best to the worst.

  `described` ones have captions that say the level.
  """
  reference, level = divmod(number, LEVELS)
  score = 1 - level / (LEVELS - 1)
  image = pixels(number)
  data = io.BytesIO()
  Image.fromarray(image).save(data, "PNG")
  share = 1 - score if lower_better else score
  word = WORDS[LEVELS - 1 - level]
  captions = dict(global_text=f"{word} image", captions=[f"{word} image", f"a {word} image"],
                  caption_sources=["iqa", "iqa"]) if described else dict(global_text=None)
  return records.Sample(
      id=f"p{number:03d}.png", image=data.getvalue()[:200] if broken else data.getvalue(),
      width=image.shape[1], height=image.shape[0], boxes=np.zeros((0, 4), np.float32), texts=[],
      **captions,
      rating=ratings.Rating(score, MOS[0] + share * (MOS[1] - MOS[0]), f"ref{reference}"))


def write(directory, count: int = 40, **how) -> str:
  """Writes the split "all"; `broken` may be a set of numbers that cannot be decoded."""
  broken = how.pop("broken", ())
  make = lambda number: sample(number, broken=number in broken, **how)
  report = writer.write_split(directory, "all", range(count), make, progress=False)
  writer.finish(directory, {"all": report}, {"provenance": "random numbers"})
  return str(directory)
