"""How does a served multimodal model describe pictures? By an OpenAI-compatible endpoint.

vLLM, SGLang, llama.cpp's server, Ollama and the commercial services all answer
`POST URL/chat/completions` with a picture as a base64 data URL.
"""

import base64
import email.utils
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from input_pipeline.build.captions.captioner import CaptionerError, Unanswered

# Answers that may be others a little later, and those that no later call changes.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_HOPELESS = (401, 402, 403, 404, 405)
_LONGEST_WAIT = 60.0
_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))


class ServedCaptioner:
  """Describes pictures by a served model; see `captioner.Captioner`.

  Args:
    url: of the API, up to before `/chat/completions`: `http://localhost:8000/v1`.
    model: the name the server knows it by.
    api_key: sent as a bearer token, if there is one.
    max_tokens, temperature: of the answer.
    timeout: seconds to wait for an answer.
    tries: how often a call is made that fails in passing.
    calls: how many at the same time.
    sleep: how to wait.
  """

  batch = 1

  def __init__(
    self, url: str, model: str, *, api_key: str = "", max_tokens: int = 200,
    temperature: float = 0.2, timeout: float = 120.0, tries: int = 6, calls: int = 8,
    sleep: Callable[[float], None] = time.sleep,
  ):
    if not url.startswith(("http://", "https://")):
      raise CaptionerError(f"the address is {url!r}, expected http://HOST:PORT/v1 or https://...")
    self._url = url.rstrip("/") + "/chat/completions"
    self._settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    self._headers = {"Content-Type": "application/json"}
    if api_key:
      self._headers["Authorization"] = f"Bearer {api_key}"
    self._timeout, self._tries, self._sleep = timeout, tries, sleep
    self.calls = calls
    self.name = f"served {model} max_tokens={max_tokens} temperature={temperature:g}"
    # Told to wait, all calls wait.
    self._lock, self._not_before = threading.Lock(), 0.0

  def describe(self, images: Sequence[bytes], prompts: Sequence[str]) -> list[str]:
    return [self._describe(data, prompt) for data, prompt in zip(images, prompts, strict=True)]

  def _describe(self, data: bytes, prompt: str) -> str:
    content = [
      {"type": "text", "text": prompt},
      {"type": "image_url", "image_url": {"url": data_url(data)}},
    ]
    body = {**self._settings, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
      self._url, json.dumps(body).encode(), self._headers, method="POST")
    problem = ""
    for attempt in range(self._tries):
      self._wait_turn()
      try:
        with urllib.request.urlopen(request, timeout=self._timeout) as reply:
          return text_of(json.load(reply))
      except urllib.error.HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace").strip()
        problem = f"{error.code} {error.reason}: {said}"
        if error.code in _HOPELESS:
          raise CaptionerError(f"{self._url} refuses to answer ({problem}); see address, model and "
                               "key") from error
        if error.code not in _PASSING:
          # This picture or prompt is what the server does not take.
          raise Unanswered("rejected", problem, final=True) from error
        wait = waiting_time(error.headers.get("Retry-After"), attempt)
        if error.code in (429, 503):
          self._hold_all(wait)
          continue
      except (OSError, http.client.HTTPException, ValueError) as error:
        # No connection, one that was cut, time that ran out, half an answer.
        problem, wait = f"{type(error).__name__}: {error}", waiting_time(None, attempt)
      if attempt + 1 < self._tries:
        self._sleep(wait)
    raise CaptionerError(
      f"{self._url}: no answer in {self._tries} tries (the last: {problem}). What was answered is "
      "kept; the same command goes on from there"
    )

  def _wait_turn(self) -> None:
    with self._lock:
      wait = self._not_before - time.monotonic()
    if wait > 0:
      self._sleep(wait)

  def _hold_all(self, seconds: float) -> None:
    with self._lock:
      self._not_before = max(self._not_before, time.monotonic() + seconds)


def data_url(data: bytes) -> str:
  """A file as the address that holds it whole."""
  kind = next((kind for start, kind in _KINDS if data.startswith(start)), "jpeg")
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def text_of(reply: Any) -> str:
  """The text of a reply.

  Raises:
    Unanswered: the reply says that there is none, or breaks off before the end of a sentence.
    ValueError: it is no reply of this API.
  """
  try:
    choice = reply["choices"][0]
    message = choice["message"]
    content = message.get("content")
  except (KeyError, IndexError, TypeError, AttributeError) as error:
    raise ValueError(f"no chat completion: {str(reply)[:200]}") from error
  if message.get("refusal"):
    raise Unanswered("refused", str(message["refusal"])[:120])
  if choice.get("finish_reason") == "content_filter":
    raise Unanswered("content-filter")
  if isinstance(content, list):
    content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
  content = content if isinstance(content, str) else ""
  if choice.get("finish_reason") == "length":
    end = max(content.rfind(mark) for mark in ".!?")
    if end < 0:
      raise Unanswered("cut", f"max_tokens ended it within its first sentence: {content[-80:]!r}")
    content = content[: end + 1]
  return content


def waiting_time(retry_after: str | None, attempt: int) -> float:
  """Seconds to wait before another try: what the server says, else 1, 2, 4, ... up to a minute."""
  if retry_after:
    try:
      return min(max(float(retry_after), 0.0), 10 * _LONGEST_WAIT)
    except ValueError:
      pass
    try:
      when = email.utils.parsedate_to_datetime(retry_after).timestamp()
      return min(max(when - time.time(), 0.0), 10 * _LONGEST_WAIT)
    except (TypeError, ValueError):
      pass
  return min(2.0**attempt, _LONGEST_WAIT)
