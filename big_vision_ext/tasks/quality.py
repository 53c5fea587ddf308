"""Quality of pictures: an adapter on a frozen CLIP, read out by the words for levels (UniQA).

The image tower's feature goes through a small adapter, is compared with the embeddings of prompts,
and the expected level is the score (see `objectives.levels`); the loss is its mean squared error to
the mean opinion score, normalised to [0, 1]. Trained are the adapter and the values of the levels.

There are two ways to the same result. With `clip`, the towers are part of the parameters, frozen:
`optim.freeze` must name what is not `adapter/`. With `width` there are no towers: batches carry
features of crops that `big_vision_ext.cache_features` has computed once. Either way the embeddings
of the prompts are parameters that stand still, `texts`: no step runs the text tower.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import quality_adapter
from big_vision_ext.objectives import levels
from big_vision_ext.tasks import _towers
from big_vision_ext.tasks import clip as clip_task
from input_pipeline import text


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "quality".

  Attributes:
    clip: the towers, as `config.model` of the task "clip"; None where batches carry features.
    width: of those features.
    towers: where they come from, `path` and `fingerprint`, as the cache says; for rating pictures.
    prompts: see `objectives.levels.read`.
    tokenizer, canonicalize: of the prompts, as those of the captions that the towers were trained
      with (`input.tokenizer`, ...); with `clip`.
    measures: what the scores are of; names them where pictures are rated.
    reduction, zero_init_last: of `models.quality_adapter.QualityAdapter`.
  """

  clip: dict[str, Any] | None = None
  width: int | None = None
  towers: dict[str, str] = dataclasses.field(default_factory=dict)
  prompts: str | dict[str, Any] = "uniqa"
  tokenizer: str = ""
  canonicalize: bool = False
  measures: Literal["quality", "aesthetic"] = "quality"
  reduction: int = 2
  zero_init_last: bool = False

  def __post_init__(self):
    if (self.clip is None) == (self.width is None):
      raise typed.ConfigError(
          f"config.model: clip is {'not ' if self.clip is None else ''}given and width={self.width}"
          ": expected either towers, to train on images, or the width of cached features")
    if self.clip is not None and not self.tokenizer:
      raise typed.ConfigError("config.model.tokenizer is empty; with config.model.clip, expected "
                              "what the prompts are tokenised with, as config.input.tokenizer")


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  return Task(typed.build(Config, model_config, "config.model"))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring."""

  config: Config

  def __post_init__(self):
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    try:
      readout = levels.read(c.prompts)
    except ValueError as error:
      raise typed.ConfigError(f"config.model.{error}") from error
    set_field("readout", readout)
    set_field("clip", None if c.clip is None else clip_task.make(c.clip))
    set_field("image_size", None if c.clip is None else self.clip.image_size)
    set_field("adapter", quality_adapter.QualityAdapter(
        readout.values, c.reduction, c.zero_init_last))
    set_field("width", c.width if c.clip is None else self.clip.vision.num_classes)
    set_field("outputs", {"quality": self.rate, "quality_zero_shot": self.rate_unadapted,
                          "image_features": self.features})

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the adapter's, once the image tower's."""
    d = self.width
    head = 4 * d * (d // self.config.reduction) + 2 * d * len(self.readout.prompts)
    tower = 0
    if self.clip is not None:
      tower = self.clip.forward_flops() - _towers.text_flops(self.clip.text)
    return flops.train(head, frozen=tower)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    score = jax.ShapeDtypeStruct((batch_size,), np.float32)
    if self.clip is None:
      shape = (batch_size, self.width)
      return {"feature": jax.ShapeDtypeStruct(shape, np.float32), "score": score}
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8), "score": score}

  def init(self, rng, batch):
    """The adapter's start; towers and texts are to come from weights (`begin`, `config.init`)."""
    params = {}
    if self.clip is not None:
      words = jnp.zeros((1, self.clip.text.text_len), jnp.int32)
      params = dict(self.clip.init(rng, {"image": batch["image"][:1], "text": words}))
    d = self.width
    feature = jnp.zeros((1, d), jnp.float32)
    adapter = self.adapter.init(jax.random.fold_in(rng, 1), feature)["params"]
    params |= {"adapter": adapter, "texts": jnp.zeros((*self.readout.shape, d), jnp.float32)}
    return params if self.clip is not None else {"t": jnp.zeros((1,), jnp.float32), **params}

  def begin(self, params):
    """The parameters that a run begins with: texts of the prompts, by the text tower once."""
    if self.clip is None:
      return params
    rows = tokens(self.readout, self.clip.text, self.config.tokenizer, self.config.canonicalize)
    z = self.clip.outputs["text_features"](params, {"text": rows})
    return {**params, "texts": z.astype(jnp.float32).reshape(params["texts"].shape)}

  def loss(self, params, batch, rng, train: bool):
    """Mean squared error of the score; beside it the mean of scores and of targets."""
    del rng, train  # Nothing here is random.
    found = self.rate(params, batch)["score"]
    target = batch["score"].astype(jnp.float32)
    return jnp.mean((found - target) ** 2), {
        "score": jnp.mean(found), "target": jnp.mean(target)}

  def features(self, params, batch):
    """(b, d), float32: what the image tower makes of crops, as it is and not of unit length."""
    if self.clip is None:
      return batch["feature"].astype(jnp.float32)
    z = self.clip.outputs["image_features"](params, {"image": batch["image"]})
    return z.astype(jnp.float32)

  def rate(self, params, batch):
    """The scores of crops and what they are made of; see `objectives.levels.score`."""
    return self.rate_features(params, self.features(params, batch))

  def rate_features(self, params, features):
    """The same of features (b, d)."""
    adapted, out = self.adapter.apply({"params": params["adapter"]}, features)
    return levels.score(adapted, params["texts"], params["t"][0], out["levels"])

  def rate_unadapted(self, params, batch):
    """The same without the adapter, with the values that levels begin with: zero-shot."""
    return levels.score(
        self.features(params, batch), params["texts"], params["t"][0], self.readout.values)


def tokens(readout: levels.Readout, tower: Any, tokenizer: str, canonicalize: bool) -> np.ndarray:
  """The prompts of a readout as ids (n, t), as captions of training were tokenised.

  Raises:
    ValueError: the tokenizer is not that of the text tower.
  """
  maker = text.make_tokenizer(tokenizer)
  if maker.vocab_size > tower.vocab_size or (
      tokenizer == "bytes" and maker.vocab_size != tower.vocab_size):
    raise ValueError(
        f"tokenizer {tokenizer!r} has {maker.vocab_size} ids and the text tower {tower.vocab_size}"
        ": it is another one's; name the right one, as --tokenizer clip:FILE, or in the config")
  plain = text.canonicalize if canonicalize else str.strip
  return np.stack([np.asarray(maker.tokenize(plain(p), tower.text_len), np.int32)
                   for p in readout.prompts])


def embed(text_features: Callable, readouts: Sequence[levels.Readout], **how: Any
          ) -> list[np.ndarray]:
  """Embeddings (g, k, v, d) of the prompts of readouts.

  Args:
    text_features: ids (n, l) -> (n, d).
    readouts: what is asked.
    **how: see `tokens`.
  """
  out = []
  for readout in readouts:
    z = np.asarray(text_features(tokens(readout, **how)), np.float32)
    out.append(z.reshape(*readout.shape, -1))
  return out
