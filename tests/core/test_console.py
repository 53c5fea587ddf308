import io

import pytest

from big_vision_ext.core import console as console_lib


class Terminal(io.StringIO):
  def isatty(self):
    return True


def drive(stream):
  console = console_lib.Console(stream)
  console.start(200)
  with console.doing("Compiling"):
    pass
  for step in (1, 2, 3):
    console.progress(step, (12.0, 3900.0))
    if step == 2:
      console.report(2, {"loss": 0.5, "aux": 0.25, "lr": 0.1, "grad_norm": 3.0,
                         "skipped_updates": 0.0, "time/step": 1.0})
  console.report(3, {"held_out/top1": 0.75})
  return stream.getvalue()


def test_a_file_gets_plain_lines():
  assert drive(io.StringIO()).splitlines() == [
      "Compiling ...",
      "step 2/200  loss 0.5  aux 0.25  lr 0.1  12 ex/s, 1h05m left",
      "step 3: held_out/top1 0.75"]


def test_a_terminal_gets_one_line_that_is_rewritten():
  text = drive(Terminal())
  assert text.startswith("Compiling ... 0s\n")
  last = text.split("\r")[-1]
  assert last.startswith("step 3/200 1%  loss 0.5  aux 0.25  12 ex/s, 1h05m left")
  assert last.rstrip().endswith("step 3: held_out/top1 0.75") and "\n" in last


def test_other_processes_are_silent():
  stream = io.StringIO()
  console = console_lib.Console(stream, quiet=True)
  console.say("hello")
  with console.doing("x"):
    console.progress(1, None)
    console.report(1, {"loss": 1.0, "lr": 1.0})
  assert stream.getvalue() == ""


@pytest.mark.parametrize("value,text", [
    (8.4, "8s"), (200, "3m20s"), (7500, "2h05m"), (273_600, "3d04h"), (-1, "0s")])
def test_durations_are_written_for_people(value, text):
  assert console_lib.seconds(value) == text
