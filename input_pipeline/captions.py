"""Which words stand with a row: a caption of the image or of a region, or a random part of it."""

import numpy as np

from input_pipeline import records, text, transforms
from input_pipeline.input_config import InputConfig


def draw(config: InputConfig, sample: records.Sample, region: int | None,
         rng: np.random.Generator, where: str) -> str:
  """A random part of a region's caption, or of the image's (None), for training.

  Raises:
    transforms.CaptionError: nothing is left of it, or none of several is of those asked for.
  """
  caption = _of_image(config, sample, rng, where) if region is None else sample.texts[region]
  if config.clean_captions:
    caption = transforms.clean_caption(caption)
  if config.sentence_sampling:
    caption = transforms.sample_sentences(caption, rng)
  caption = _canonical(config, caption)
  if not caption:
    raise transforms.CaptionError(f"{where}: the caption has no words left after cleaning.")
  return caption


def draw_more(config: InputConfig, sample: records.Sample, region: int | None,
              crop: transforms.Crop, rng: np.random.Generator,
              where: str) -> list[tuple[int | None, str]]:
  """Further (region, caption) of what a crop shows, each of the image once if there are enough.

  The global caption is among an image's as often as makes it the share of all captions that is
  asked for, as far as one an image can. Where there are too few, the first ones come again.

  Args:
    region: of the first caption.

  Raises:
    transforms.CaptionError: as for `draw`.
  """
  count, share = config.captions_per_image, config.global_share
  seen = transforms.visible_share(sample.boxes, crop) >= transforms.MIN_VISIBLE
  others = [int(i) for i in rng.permutation(np.flatnonzero(seen)) if i != region]
  chosen: list[int | None] = [region, *others]
  wanted = (min(1.0, count * share) - share) / (1 - share) if share < 1 else 0.0
  if region is not None and sample.global_text is not None and rng.random() < wanted:
    chosen.insert(1, None)
  elif len(chosen) < count and region is not None and sample.global_text is not None:
    chosen.append(None)
  again = [chosen[i % len(chosen)] for i in range(1, count)]
  return [(other, draw(config, sample, other, rng, where)) for other in again]


def whole(config: InputConfig, caption: str) -> str:
  """Returns a whole caption as evaluation reads it: cleaned and canonical if so configured."""
  if config.clean_captions:
    caption = transforms.clean_caption(caption)
  return _canonical(config, caption)


def _of_image(config, sample, rng, where) -> str:
  """The global caption, or one of several; raises CaptionError if none is of those asked for."""
  if not config.one_caption:
    return sample.global_text
  captions, sources = sample.captions or [sample.global_text], config.caption_sources
  if sources:
    captions = [c for c, of in zip(sample.captions, sample.caption_sources) if of in sources]
  if not captions:
    raise transforms.CaptionError(
      f"{where}: none of its {len(sample.captions)} captions is of {', '.join(sources)}.")
  return captions[int(rng.integers(len(captions)))]


def _canonical(config, caption: str) -> str:
  return text.canonicalize(caption) if config.canonicalize else caption.strip()
