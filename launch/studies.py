"""Which studies are there? Their arms, what is measured, and the columns of their tables."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
  """A row of a study's table.

  Attributes:
    name: of its folders.
    config: below configs/, with its argument, in which {data} is the data set.
    overrides: KEY=VALUE settings of it.
    title: in the table; the name, if it is empty.
    untrained: one step with a rate of 0, and then the evaluation.
    once: only with the first seed, as it does not depend on any.
    shift: added to the seed, where each run shall be a draw of its own.
  """

  name: str
  config: str
  overrides: tuple[str, ...] = ()
  title: str = ""
  untrained: bool = False
  once: bool = False
  shift: int = 0


@dataclasses.dataclass(frozen=True)
class Study:
  """What is compared.

  Attributes:
    about: a line for --help, with what it costs.
    data: what `input_pipeline.build --from` makes, into data/.
    steps: of each training, if the command line does not say.
    overrides: of all arms.
    columns: {heading: (measure in evaluation.json, factor)}; a factor of 100 makes percent.
    arms: the rows.
    effects: whether to tell what each setting adds in which the arms differ, from all runs.
  """

  about: str
  data: str
  steps: int
  overrides: tuple[str, ...]
  columns: dict[str, tuple[str, float]]
  arms: tuple[Arm, ...]
  effects: bool = False


_STILL = ("lr=0.0", "optim.weight_decay=0.0")

_PROBE = {"type": "linear_probe", "input": {"split": "val"}, "batch_size": 64,
          "l2": (1.0, 0.1, 0.01), "max_steps": 300, "tolerance": 1e-4}
_LATENTS = {"type": "latents", "input": {"split": "val"}, "batch_size": 64, "selectivity": False,
            "max_images": 1000}
_FOCUSMIM = "mim/focusmim.py:data={data},small"

FOCUSMIM = Study(
    about="masks like gaze (FocusMIM) on digits over photographs: a linear probe; half an hour",
    data="digits", steps=300,
    overrides=(f"evals={ {'probe': _PROBE, 'latents': _LATENTS} }", "input.image_size=48",
               "model.image.image_size=48"),
    columns={"linear probe, %": ("probe/top1", 100),
             "on its training images, %": ("probe/train_top1", 100),
             "decorrelation, excess": ("latents/decorrelation_excess", 1),
             "effective rank": ("latents/effective_rank", 1)},
    arms=(
        Arm("random", f"{_FOCUSMIM},mask=random", title="random patches hidden"),
        Arm("periphery", f"{_FOCUSMIM},mask=periphery", title="periphery hidden"),
        Arm("periphery_whole", f"{_FOCUSMIM},mask=periphery,crop=False",
            title="periphery hidden, no crops"),
        Arm("periphery_blur", f"{_FOCUSMIM},mask=periphery,fill=blur", title="periphery blurred"),
        Arm("none", f"{_FOCUSMIM},mask=none", title="nothing hidden (autoencoder)"),
        Arm("untrained", f"{_FOCUSMIM},mask=none", _STILL, "untrained encoder", untrained=True),
        Arm("pixels", f"{_FOCUSMIM},mask=none",
            (*_STILL, f"evals={ {'probe': {**_PROBE, 'features': 'pixels'}} }"), "raw pixels",
            untrained=True, once=True)))

_FIXATIONS = "mim/fixations.py:data={data},small"

FIXATIONS = Study(
    about="a learned surprise against uniform looks at as many tokens, on digits; half an hour",
    data="digits", steps=400, overrides=(),
    columns={
        "linear probe, %": ("probe/top1", 100),
        "left to predict, uniform": ("looks/uniform/remaining_after_4", 1),
        "left to predict, surprise": ("looks/surprise/remaining_after_4", 1),
        "gain of surprise, %": ("looks/surprise/gain_after_4", 100)},
    arms=(
        Arm("uniform", f"{_FIXATIONS},policy=uniform", title="trained on uniform looks"),
        Arm("surprise", f"{_FIXATIONS},policy=surprise", title="trained on surprise"),
        Arm("untrained", f"{_FIXATIONS},policy=uniform", _STILL, "untrained", untrained=True)))

_PS3 = "ps3/demo.py:data={data}"
_SELECTION = {"selection": {
    "type": "selection_quality", "input": {"split": "val"}, "batch_size": 32,
    "selections": ("bottomup", "random")}}

SURPRISE = Study(
    about="PS3's bottom-up selection taught by surprise: the share of regions found; half an "
    "hour with --steps 300 --seeds 0",
    data="sample", steps=600,
    # The share of the demo's warm-up, for any number of steps.
    overrides=("schedule={'type': 'cosine', 'warmup_percent': 4}",),
    columns={
        "recall, % (1.7 % of tokens)": ("selection/bottomup/recall_at_200", 100),
        "recall, % (6.9 %)": ("selection/bottomup/recall_at_800", 100),
        "of what teaches, %": ("selection/surprise/recall_at_200", 100),
        "of what teaches, % (6.9 %)": ("selection/surprise/recall_at_800", 100),
        "random, %": ("selection/random/recall_at_200", 100)},
    arms=(
        Arm("surprise", f"{_PS3},surprise", title="taught by learned surprise, no boxes"),
        Arm("image", f"{_PS3},surprise", ("model.surprise.hidden=0",),
            "taught by surprise of the image alone, no boxes"),
        Arm("nothing", f"{_PS3},surprise", ("model.selection_weight=0.0",),
            "the same, not taught"),
        Arm("boxes", _PS3, (f"evals={_SELECTION}",), "taught by boxes (demo)")))

# Switches of `config.model.image` beyond the original.
_SWITCHES = {"low": "low_antialias=True", "scored": "selection_antialias=True",
             "maps": "selection_maps=each", "cells": "budget_rule=cells"}
# Half of their combinations, those with an even number of them: each is on in four arms, and any
# two are on together in two, so that no effect hides behind another's.
_HALF = ("", "low scored", "low maps", "scored maps", "low cells", "scored cells", "maps cells",
         "low scored maps cells")

SWITCHES = Study(
    about="PS3's switches beyond the original, eight combinations of four; an hour with --steps "
    "700 --seeds 10",
    data="sample", steps=1200, overrides=(), effects=True,
    columns={"top-10, %": ("regions/topdown/retrieval_top10", 100),
             "recall, %": ("regions/topdown/selection_recall", 100),
             "bottom-up top-10, %": ("regions/bottomup/retrieval_top10", 100),
             "bottom-up recall, %": ("regions/bottomup/selection_recall", 100)},
    arms=tuple(
        Arm(combination.replace(" ", "-") or "published", _PS3,
            tuple(f"model.image.{_SWITCHES[name]}" for name in combination.split()), shift=i)
        for i, combination in enumerate(_HALF)))

_AGAIN = "img/(?!later_looks).*', 'txt/.*', 'prompt_proj/.*', 't', 'b"

POLICY = Study(
    about="a policy of later looks, added to runs/demo and trained alone: equal tokens with and "
    "without it; ten minutes",
    data="sample", steps=200,
    overrides=("model.image.look_policy=True", "init.path=runs/demo",
               "init.allow_missing=('img/later_looks/.*',)", f"optim.freeze=('{_AGAIN}')",
               f"evals={ {'selection': {**_SELECTION['selection'], 'selections': ('topdown',)}} }"),
    columns={
        "recall, %, 400 tokens": ("selection/topdown/recall_at_400", 100),
        "without": ("selection/ranked_topdown/recall_at_400", 100),
        "800 tokens": ("selection/topdown/recall_at_800", 100),
        "without ": ("selection/ranked_topdown/recall_at_800", 100)},
    arms=(Arm("policy", _PS3),))

STUDIES = {"focusmim": FOCUSMIM, "fixations": FIXATIONS, "surprise": SURPRISE,
           "switches": SWITCHES, "policy": POLICY}
