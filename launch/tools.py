"""Runs other programs: shows them, in a dry run only shows them, and keeps secrets out of sight."""

import dataclasses
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


class ToolError(ValueError):
  """A program that is missing or failed; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Result:
  """How a program ended: exit code, and what it said."""

  code: int
  out: str = ""
  err: str = ""

  @property
  def last(self) -> str:
    """The end of what it said, for people."""
    lines = (self.err.strip() or self.out.strip()).splitlines()
    return "\n".join(lines[-12:])


_SUCCESS = Result(0)


class Tools:
  """The programs of a launcher.

  Attributes:
    dry: nothing is run; each program is printed as it would be run, and is taken to succeed.
    sleep, now: the clock, seconds; tests have one of their own.
  """

  def __init__(self, *, dry: bool = False, secrets: Sequence[str] = (),
               sleep: Callable[[float], None] = time.sleep,
               now: Callable[[], float] = time.monotonic):
    self.dry = dry
    self.sleep = sleep if not dry else lambda seconds: None
    self.now = now
    self._secrets = tuple(secrets)

  def say(self, text: str) -> None:
    """Tells the person at the terminal; in a dry run as a comment between commands."""
    text = self.hide(text)
    print("\n".join(f"# {line}" for line in text.splitlines()) if self.dry else text, flush=True)

  def run(self, argv: Sequence[str], *, dry: Result = _SUCCESS, stdin: str | None = None,
          timeout: float | None = None) -> Result:
    """Runs a program to its end.

    Args:
      argv: the program and its arguments.
      dry: what to take as the result in a dry run.
      stdin: what it reads.
      timeout: seconds after which it is killed; its code is then 124.

    Raises:
      ToolError: there is no such program.
    """
    if self.dry:
      self._show(argv, stdin)
      return dry
    return self._execute(argv, stdin, timeout)

  def _execute(self, argv, stdin, timeout):
    try:
      done = subprocess.run(argv, input=stdin, capture_output=True, text=True, errors="replace",
                            timeout=timeout, stdin=None if stdin is not None else
                            subprocess.DEVNULL)
    except FileNotFoundError:
      raise _missing(argv[0]) from None
    except subprocess.TimeoutExpired:
      return Result(124, "", f"{argv[0]} did not end within {timeout:g} s")
    return Result(done.returncode, self.hide(done.stdout), self.hide(done.stderr))

  def stream(self, argv: Sequence[str], on_line: Callable[[str], None]) -> Result:
    """Runs a program and hands over its lines as they come; the result has what it said on stderr.

    Raises:
      ToolError: there is no such program.
    """
    if self.dry:
      self._show(argv, None)
      return Result(0)
    try:
      process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, errors="replace")
    except FileNotFoundError:
      raise _missing(argv[0]) from None
    try:
      tail = []
      for line in process.stdout:
        on_line(self.hide(line.rstrip("\n")))
        tail = [*tail[-40:], line]
      return Result(process.wait(), "", self.hide("".join(tail)))
    finally:
      # Left by Ctrl-C or an error: what follows a log is no use without us.
      if process.poll() is None:
        process.terminate()
        process.wait()

  def hide(self, text: str) -> str:
    """The text without secrets."""
    for secret in self._secrets:
      text = text.replace(secret, "***")
    return text

  def _show(self, argv, stdin):
    print(self.hide(quoted(argv)) + (" <<'EOF'" if stdin is not None else ""))
    if stdin is not None:
      print(self.hide(stdin.rstrip("\n")) + "\nEOF")
    sys.stdout.flush()


def quoted(argv: Sequence[str]) -> str:
  """A command as a shell takes it, options with the quotes behind the "="."""
  words = []
  for word in argv:
    option, equals, value = word.partition("=")
    if equals and re.fullmatch(r"--[a-z-]+", option):
      words.append(f"{option}={shlex.quote(value)}")
    else:
      words.append(shlex.quote(word))
  return " ".join(words)


def _missing(program):
  where = {"gcloud": "https://cloud.google.com/sdk/docs/install",
           "kubectl": "`gcloud components install kubectl`"}.get(program)
  return ToolError(f"{program}: not found on PATH" + (f"; to install it: {where}" if where else ""))
