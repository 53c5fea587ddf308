"""A served model is asked as its API says, again where that helps, and never for ever."""

import base64
import email.utils
import threading
import time

import pytest

from input_pipeline.build.captions import served
from input_pipeline.build.captions.captioner import CaptionerError, Unanswered
from tests.input_pipeline.build.captions.stub_server import StubServer, completion

PNG, JPEG = b"\x89PNG and more", b"\xff\xd8\xff and more"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")


def captioner(url, waits=None, **options):
  waits = [] if waits is None else waits
  options = {"timeout": 5.0, "tries": 3, "calls": 4, **options}
  return served.ServedCaptioner(url, "tiny", sleep=waits.append, **options)


def test_the_request_has_model_prompt_key_and_the_picture_whole():
  with StubServer(lambda k, body: f"answer {k}") as stub:
    found = captioner(stub.url + "/", api_key="secret", max_tokens=50, temperature=0.5).describe(
      [PNG, JPEG], ["one?", "two?"])
  assert found == ["answer 0", "answer 1"]
  headers, path, body = stub.asked[0]
  assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
  assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 50, 0.5)
  (message,) = body["messages"]
  text, image = message["content"]
  assert text == {"type": "text", "text": "one?"}
  start, data = image["image_url"]["url"].split(",")
  assert start == "data:image/png;base64" and base64.b64decode(data) == PNG
  second = stub.asked[1][2]["messages"][0]["content"][1]["image_url"]["url"]
  assert second.startswith("data:image/jpeg;")


def test_without_a_key_none_is_sent():
  with StubServer(lambda k, body: "yes") as stub:
    captioner(stub.url).describe([PNG], ["?"])
  assert "Authorization" not in stub.asked[0][0]


@pytest.mark.parametrize("trouble", [
  (500, {}, b"oops"), (503, {}, b""), (200, {}, b"not json"), (200, {}, {"choices": []}),
])
def test_what_fails_in_passing_is_asked_again(trouble):
  waits = []
  with StubServer(lambda k, body: trouble if k < 2 else "at last") as stub:
    assert captioner(stub.url, waits).describe([PNG], ["?"]) == ["at last"]
  assert len(stub.asked) == 3 and waits[0] <= 1 < waits[1] <= 2


def test_a_rate_limit_is_waited_for_as_long_as_it_says():
  waits = []
  with StubServer(lambda k, body: (429, {"Retry-After": "7"}, b"") if k == 0 else "ok") as stub:
    assert captioner(stub.url, waits).describe([PNG], ["?"]) == ["ok"]
  assert len(waits) == 1 and 6.5 < waits[0] <= 7


def test_retry_after_may_be_a_date_or_nonsense():
  date = email.utils.formatdate(time.time() + 30, usegmt=True)
  assert 28 < served.waiting_time(date, 0) <= 30
  assert [served.waiting_time("soon", k) for k in (0, 1, 5, 9)] == [1, 2, 32, 60]
  assert served.waiting_time("-5", 0) == 0 and served.waiting_time("1e9", 0) == 600


def test_it_gives_up_and_says_what_was_the_last():
  with StubServer(lambda k, body: (502, {}, b"bad gateway there")) as stub:
    with pytest.raises(CaptionerError, match="3 tries.*502.*bad gateway there"):
      captioner(stub.url).describe([PNG], ["?"])
  assert len(stub.asked) == 3


def test_a_server_that_is_not_there_or_silent_ends_it_too():
  with pytest.raises(CaptionerError, match="no answer in 2 tries"):
    captioner("http://127.0.0.1:9/v1", tries=2).describe([PNG], ["?"])
  ended = threading.Event()
  with StubServer(lambda k, body: ended.wait(5) and "late") as stub:
    try:
      with pytest.raises(CaptionerError, match="no answer in 1 tries.*(T|t)ime"):
        captioner(stub.url, tries=1, timeout=0.1).describe([PNG], ["?"])
    finally:
      ended.set()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_an_unknown_model_stops_at_once(status):
  with StubServer(lambda k, body: (status, {}, {"error": "model tiny is unknown"})) as stub:
    with pytest.raises(CaptionerError, match="model tiny is unknown"):
      captioner(stub.url).describe([PNG], ["?"])
  assert len(stub.asked) == 1


@pytest.mark.parametrize("answer, reason", [
  ((400, {}, b"image too large"), "rejected"),
  ((200, {}, completion("x", "content_filter")), "content-filter"),
  ((200, {}, completion(None, refusal="I must not.")), "refused"),
  ((200, {}, completion("It is a very", "length")), "cut"),
])
def test_one_picture_that_is_not_answered_is_only_that(answer, reason):
  with StubServer(lambda k, body: answer) as stub:
    with pytest.raises(Unanswered) as error:
      captioner(stub.url).describe([PNG], ["?"])
  assert error.value.reason == reason and len(stub.asked) == 1


def test_an_answer_that_was_cut_keeps_its_whole_sentences():
  assert served.text_of(completion("It is sharp. It is al", "length")) == "It is sharp."
  assert served.text_of(completion([{"type": "text", "text": "It is"}, {"text": " sharp."}])) == (
    "It is sharp.")
  assert served.text_of(completion(None)) == ""


def test_an_address_that_is_none_is_refused():
  with pytest.raises(CaptionerError, match="localhost:8000"):
    captioner("localhost:8000")
