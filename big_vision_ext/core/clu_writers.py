"""How can clu's `metric_writers` be had without TensorFlow?

The package imports its TensorFlow event writer whether or not it is used. Put in that module's
place before the import, an empty one lets the rest, which needs nothing of it, be imported. Where
TensorFlow is installed this is just as true and saves seconds of import. It leans on the layout of
clu 0.0.12, which requirements pin and a test guards.
"""

import sys
import types

_NAME = "clu.metric_writers.tf.summary_writer"

if _NAME not in sys.modules:
  _stub = types.ModuleType(_NAME)
  _stub.SummaryWriter = None
  sys.modules[_NAME] = _stub

from clu.metric_writers import MetricWriter, MultiWriter  # noqa: E402

__all__ = ["MetricWriter", "MultiWriter"]
