"""Trains, and is killed at random moments: `killed_train.py SEED KILLS WORKDIR ARGUMENTS...`.

Each start is a fork of this process, which has everything imported. After each, one line of JSON
tells the moment, how it ended (minus the signal, or the exit code) and which checkpoints there are.
"""

import json
import os
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(seed, kills, workdir, *arguments):
  from big_vision_ext import train
  from tests import interrupted_train
  rng = random.Random(int(seed))
  for number in range(int(kills)):
    # While a checkpoint is written files are touched all the time: half of the kills fall there.
    moment = (f"file:{rng.randrange(1, 400)}" if number % 2 else f"time:{rng.randrange(1500)}")
    pid = os.fork()
    if not pid:
      with open(pathlib.Path(workdir).parent / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
      interrupted_train.interrupt_at(moment, workdir)
      os._exit(train.main(["--workdir", workdir, *arguments]))
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    folder = pathlib.Path(workdir, "checkpoints")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    print(json.dumps([moment, end, steps]), flush=True)


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main(*sys.argv[1:])
