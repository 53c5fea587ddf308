"""Runs the trainer and sends it a signal at a chosen moment: `interrupted_train.py MOMENT -- ARGS`.

Moments, `NAME:N` being the N-th time that it comes:
  batch      the loop has a batch and has not used it yet
  line       a line of metrics is about to be written
  save       a checkpoint has begun: its temporary folder is made
  commit     a complete checkpoint is about to get its final name
  takeback   the metrics file is about to be replaced by one without its last lines
  term       as batch, but SIGTERM instead of SIGKILL
  never
"""

import os
import pathlib
import re
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def interrupt_at(moment: str) -> None:
  """Arranges for the signal."""
  name, _, nth = moment.partition(":")
  left = [int(nth or 1)]

  def maybe(now):
    if now == name:
      left[0] -= 1
      if left[0] == 0:
        os.kill(os.getpid(), signal.SIGTERM if name == "term" else signal.SIGKILL)

  def watch(event, args):
    # Python announces what it does to files here, whichever library asks for it.
    if event == "os.mkdir" and re.fullmatch(r".*/checkpoints/\d+\.[^/]*tmp", str(args[0])):
      maybe("save")
    elif event == "os.rename" and re.fullmatch(r".*/checkpoints/\d+", str(args[1])):
      maybe("commit")
    elif event == "os.rename" and str(args[1]).endswith("metrics.jsonl"):
      maybe("takeback")
  sys.addaudithook(watch)

  from big_vision_ext.core import metrics, step
  check_batch, write = step.check_batch, metrics.JsonLines.write_scalars

  def checked(*args):
    maybe("batch")
    maybe("term")
    return check_batch(*args)

  def written(*args):
    maybe("line")
    return write(*args)
  step.check_batch, metrics.JsonLines.write_scalars = checked, written


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  from big_vision_ext import train
  interrupt_at(sys.argv[1])
  sys.exit(train.main(sys.argv[3:]))
