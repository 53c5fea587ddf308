"""Runs the trainer and interrupts it at a chosen moment: `interrupted_train.py MOMENT -- ARGS`.

Moments, `NAME:N` being the N-th time that it comes, `NAME:N@P` that of process P only:
  batch      the loop has a batch and has not used it yet
  settled    as batch, but not before the checkpoints that have begun are complete
  line       a line of metrics is about to be written
  save       a checkpoint has begun: its temporary folder is made
  commit     a complete checkpoint is about to get its final name
  takeback   the metrics file is about to be replaced by one without its last lines
  term       as batch, but SIGTERM instead of SIGKILL
  hang       as batch, but nothing happens any more
  fail       as batch, but an error that a person has to mend
  file       anything is done to a file of the workdir, from the first batch on
  time       N milliseconds after the first batch
  never

With RECORD=DIR, each process writes down in DIR what it makes and uses: for every row that it makes
[position in the stream, record, hash], for every step the hashes of the rows that it is given.
"""

import hashlib
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


_FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def interrupt_at(moment: str, workdir: str) -> None:
  """Arranges for the interruption."""
  moment, _, process = moment.partition("@")
  name, _, nth = moment.partition(":")
  left, began, saves = [int(nth or 1)], [], []
  if process and process != os.environ.get("JAX_PROCESS_ID"):
    return

  def maybe(now):
    if now == name:
      left[0] -= 1
      if left[0] == 0:
        if name == "settled":
          # Saving goes on in the background, here and in the other processes of the run.
          while not all(os.path.isdir(path) for path in saves):
            time.sleep(0.01)
        if name == "hang":
          time.sleep(1e6)
        if name == "fail":
          raise ValueError("the disk of this machine is on fire")
        os.kill(os.getpid(), signal.SIGTERM if name == "term" else signal.SIGKILL)

  def watch(event, args):
    # Python announces what it does to files here, whichever library asks for it.
    if began and event in _FILE_EVENTS and workdir in str(args[0]):
      maybe("file")
    if event == "os.mkdir" and re.fullmatch(r".*/checkpoints/\d+\.[^/]*tmp", str(args[0])):
      maybe("save")
    elif event == "os.rename" and re.fullmatch(r".*/checkpoints/\d+", str(args[1])):
      maybe("commit")
    elif event == "os.rename" and str(args[1]).endswith("metrics.jsonl"):
      maybe("takeback")
  sys.addaudithook(watch)

  from big_vision_ext.core import checkpoint, metrics, step
  check_batch, write = step.check_batch, metrics.JsonLines.write_scalars
  save = checkpoint.Checkpoints.save

  def checked(*args):
    if name == "time" and not began:
      threading.Timer(left[0] / 1000, os.kill, [os.getpid(), signal.SIGKILL]).start()
    began.append(True)
    maybe("batch")
    for now in ("settled", "term", "hang", "fail"):
      maybe(now)
    return check_batch(*args)

  def written(*args):
    maybe("line")
    return write(*args)

  def saved(self, number, *args):
    saves.append(f"{workdir}/checkpoints/{number}")
    return save(self, number, *args)
  checkpoint.Checkpoints.save = saved
  step.check_batch, metrics.JsonLines.write_scalars = checked, written


def record(folder: pathlib.Path) -> None:
  """Arranges for the record of rows."""
  from big_vision_ext.core import step
  from input_pipeline import loader

  lock = threading.Lock()
  made, used = (open(folder / f"{name}_{os.environ.get('JAX_PROCESS_ID', 0)}_{os.getpid()}", "a")
                for name in ("made", "used"))
  fill, check_batch = loader._TrainBatches._fill, step.check_batch

  def filled(self, batch, row, position, news):
    fill(self, batch, row, position, news)
    member, number = self._mixture[position]
    line = [position, self._mixture.members[member].source[number].id, hash_of(batch, row)]
    with lock:
      print(json.dumps(line), file=made, flush=True)

  def checked(spec, batch, *args):
    print(json.dumps([hash_of(batch, row) for row in range(len(batch["image"]))]), file=used,
          flush=True)
    return check_batch(spec, batch, *args)
  loader._TrainBatches._fill, step.check_batch = filled, checked


def hash_of(batch, row: int) -> str:
  """A hash of all that a batch says in a row."""
  content = b"".join(batch[name][row].tobytes() for name in ("image", "text", "box", "is_global"))
  return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  from big_vision_ext import train
  if os.environ.get("RECORD"):
    record(pathlib.Path(os.environ["RECORD"]))
  arguments = sys.argv[3:]
  interrupt_at(sys.argv[1], arguments[arguments.index("--workdir") + 1])
  sys.exit(train.main(arguments))
