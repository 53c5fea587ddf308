"""Describing goes on where it was stopped, asks once, and never writes an answer that is none."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from input_pipeline import records, splits
from input_pipeline.build import cli as build_cli
from input_pipeline.build import writer
from input_pipeline.build.captions import caption_file, cli, local
from input_pipeline.build.captions.captioner import CaptionerError
from input_pipeline.build.captions.describe import describe
from input_pipeline.ratings import Rating
from tests.input_pipeline.build.captions.stub_server import StubServer


def sample(k):
  """A rated picture; the last two are of the same file."""
  rng = np.random.default_rng(min(k, 10))
  data = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(data, "PNG")
  return records.Sample(
    id=f"p{k}", image=data.getvalue(), width=40, height=36, boxes=np.zeros((0, 4), np.float32),
    texts=[], source=f"folder/p{k}.png", rating=Rating(0.1 + 0.2 * (min(k, 10) % 5), 3.0, f"p{k}"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = tmp_path_factory.mktemp("rated")
  report = writer.write_split(out, "all", range(12), sample, progress=False)
  writer.finish(out, {"all": report}, {"all": {"rated": {"dataset": "csv"}}})
  return str(out)


class Scripted:
  """Answers by a function of (prompt, how often this picture was asked about)."""

  def __init__(self, answer, batch=1, calls=1, name="scripted"):
    self._answer, self.batch, self.calls, self.name = answer, batch, calls, name
    self.asked = []
    self._lock = threading.Lock()

  def describe(self, images, prompts):
    found = []
    for image, prompt in zip(images, prompts):
      with self._lock:
        times = sum(image == before for before, _ in self.asked)
        self.asked.append((image, prompt))
      found.append(self._answer(prompt, times))
    return found


def run(data, captioner, out, **options):
  return describe(records.open_dataset(data, "all"), captioner, str(out),
                  **{"task": "iqa", "prompt": "say {level}", "progress": False, **options})


def texts(out):
  return {line["id"]: line["text"] for line in caption_file.read_lines(out)}


def test_each_picture_is_asked_about_by_its_level_and_once_per_file(data, tmp_path):
  captioner = Scripted(lambda prompt, times: f"It is {prompt.split()[-1]}.")
  report = run(data, captioner, tmp_path / "c.jsonl")
  assert (report.asked, report.answered, report.reused) == (12, 11, 1)
  found = texts(tmp_path / "c.jsonl")
  assert len(found) == 12 and found["p0"] == "It is bad." and found["p4"] == "It is perfect."
  assert found["p10"] == found["p11"] == "It is bad."
  again = run(data, captioner, tmp_path / "c.jsonl")
  assert (again.there, again.answered) == (12, 0) and len(captioner.asked) == 11


def test_another_prompt_or_model_asks_anew_and_the_last_answer_counts(data, tmp_path):
  out = tmp_path / "c.jsonl"
  run(data, Scripted(lambda p, t: "first."), out)
  run(data, Scripted(lambda p, t: "second."), out, prompt="other {level}")
  run(data, Scripted(lambda p, t: "third.", name="a larger one"), out, limit=3)
  found = caption_file.read([out])
  assert found["p1"] == [("iqa", "third.")] and found["p9"] == [("iqa", "second.")]


def test_an_interrupted_run_keeps_what_was_answered_and_goes_on(data, tmp_path):
  out = tmp_path / "c.jsonl"

  def answer(prompt, times):
    if len(broken.asked) > 5:
      raise CaptionerError("gone")
    return "Fine."

  broken = Scripted(answer, calls=2)
  with pytest.raises(CaptionerError, match="gone"):
    run(data, broken, out)
  kept = len(texts(out))
  assert 1 <= kept <= 5
  # As if it had been killed while writing.
  with open(out, "a") as file:
    file.write('{"id": "p8", "task": "iqa", "te')
  whole = Scripted(lambda p, t: "Fine.", calls=2)
  report = run(data, whole, out)
  assert report.there == kept and len(texts(out)) == 12
  assert len(whole.asked) <= 11 - kept + 1
  assert all(json.loads(line) for line in out.read_text().splitlines())


def test_refused_and_empty_answers_are_asked_again_and_never_written(data, tmp_path):
  out = tmp_path / "c.jsonl"

  def answer(prompt, times):
    if "fair" in prompt:
      return ""
    if "good" in prompt:
      return "I'm sorry, I can't." if times == 0 else "Good it is."
    return "Fine."

  captioner = Scripted(answer)
  report = run(data, captioner, out)
  # Two pictures are fair (p2, p7), asked three times each; two good ones answer at the second.
  assert report.unanswered == {"empty": 2} and report.again == 2 * 2 + 2 * 1
  assert texts(out).keys() == {f"p{k}" for k in range(12)} - {"p2", "p7"}
  assert set(texts(out).values()) == {"Good it is.", "Fine."}
  assert run(data, Scripted(lambda p, t: "Fine."), out).answered == 2


def test_shards_divide_the_pictures_and_know_nothing_of_each_other(data, tmp_path):
  found = []
  for k in range(3):
    run(data, Scripted(lambda p, t: "x."), tmp_path / f"{k}.jsonl", shard=(k, 3))
    found.append(set(texts(tmp_path / f"{k}.jsonl")))
  assert sum(map(len, found)) == 12 and set.union(*found) == {f"p{k}" for k in range(12)}
  together = caption_file.read([tmp_path / f"{k}.jsonl" for k in range(3)])
  assert len(together) == 12
  with pytest.raises(ValueError, match="shard 3/3"):
    run(data, Scripted(lambda p, t: "x."), tmp_path / "3.jsonl", shard=(3, 3))


def test_two_processes_do_not_write_to_one_file(data, tmp_path):
  with caption_file.CaptionLog(tmp_path / "c.jsonl"):
    with pytest.raises(ValueError, match="another process"):
      run(data, Scripted(lambda p, t: "x."), tmp_path / "c.jsonl")


def test_calls_run_side_by_side_and_no_more_than_asked_for(data, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.setenv("THE_KEY", "secret")
  meeting = threading.Barrier(3)

  def reply(number, body):
    if number < 3:
      meeting.wait(10)  # Ends only if three are asked at the same time.
    return f"Answer {number}."

  with StubServer(reply) as stub:
    status = cli.main([
      "describe", "--data", data, "--task", "iqa", "--by", "served", "--url", stub.url, "--model",
      "m", "--calls", "3", "--api-key-env", "THE_KEY", "--out", str(tmp_path / "c.jsonl"),
      "--quiet"])
  assert status == 0 and stub.most == 3 and len(texts(tmp_path / "c.jsonl")) == 12
  assert stub.asked[0][0]["Authorization"] == "Bearer secret"
  asked = {body["messages"][0]["content"][0]["text"] for _, _, body in stub.asked}
  assert any("rated as perfect" in prompt for prompt in asked) and len(asked) == 5
  assert "secret" not in (tmp_path / "c.jsonl").read_text() + capsys.readouterr().out


def test_replay_gives_the_answers_again_and_counts_those_it_lacks(data, tmp_path, capsys):
  out, again = str(tmp_path / "c.jsonl"), str(tmp_path / "again.jsonl")
  args = ["describe", "--data", data, "--task", "iaa", "--quiet"]
  assert cli.main([*args, "--by", "template", "--out", out, "--limit", "8"]) == 0
  replay = [*args, "--by", "replay", "--replay", out, "--out", again]
  assert cli.main(replay) == 3  # Asked with another prompt, it knows no answer.
  assert "not-in-replay 12" in capsys.readouterr().out
  assert cli.main([*replay, "--prompt", "iaa {level}"]) == 3
  assert texts(again) == texts(out) and "not-in-replay 4" in capsys.readouterr().out


@pytest.mark.parametrize("options, words", [
  (["--by", "served", "--url", "http://x"], "--model"),
  (["--by", "template", "--model", "m"], "does not take --model"),
  (["--by", "replay", "--replay", "/none"], "/none"),
  (["--by", "served", "--url", "http://x", "--model", "m", "--api-key-env", "NO_SUCH"], "NO_SUCH"),
  (["--by", "template", "--shard", "1"], "--shard 1"),
  (["--by", "template", "--split", "val"], "no split 'val'"),
  (["--by", "template", "--prompt", "a {score}"], "{level}"),
])
def test_options_that_do_not_fit_are_refused(data, tmp_path, capsys, options, words):
  args = ["describe", "--data", data, "--task", "iqa", "--out", str(tmp_path / "c"), "--quiet"]
  assert cli.main([*args, *options]) == 1
  assert words in capsys.readouterr().err


def test_local_models_say_which_package_is_missing(monkeypatch):
  def missing(name):
    raise ImportError(f"No module named '{name}'")

  monkeypatch.setattr(local.importlib, "import_module", missing)
  with pytest.raises(CaptionerError, match="--by local needs the package torch.*--by served"):
    local.LocalCaptioner("model")


def test_captions_come_into_records_and_out_as_uniqas_json(data, tmp_path, capsys):
  iqa, human, out = tmp_path / "iqa.jsonl", tmp_path / "human.jsonl", tmp_path / "out"
  run(data, Scripted(lambda p, t: f"It is {p.split()[-1]}."), iqa, limit=10)
  lines = [{"id": "p0", "task": "iaa_human", "text": text} for text in ("Nice.", "Wow.", "Nice.")]
  human.write_text("".join(json.dumps(x) + "\n" for x in [*lines, {**lines[0], "id": "p99"}]))
  status = build_cli.main(["--from", "described", "--images", data, "--annotations",
                           f"{iqa},{human}", "--out", str(out), "--quiet", "--val-share", "0.3"])
  assert status == 0
  found = {s.id: s for split in ("train", "val") for s in records.open_dataset(out, split)}
  assert len(found) == 10 and found["p0"].rating == sample(0).rating
  assert found["p0"].captions == ["It is bad.", "Nice.", "Wow."]
  assert found["p0"].caption_sources == ["iqa", "iaa_human", "iaa_human"]
  assert found["p1"].captions == ["It is poor."] and found["p1"].global_text == "It is poor."
  said = capsys.readouterr().out
  assert "picture-without-caption 2" in said and "caption-for-no-image 1" in said

  exported = tmp_path / "uniqa.json"
  assert cli.main(["export", "--data", str(out), "--out", str(exported)]) == 0
  entries = {entry["image_path"]: entry for entry in json.loads(exported.read_text())}
  assert entries["folder/p0.png"]["prompt"] == ["It is bad.", "Nice.", "Wow."]
  assert entries["folder/p1.png"] == {"image_path": "folder/p1.png", "prompt": "It is poor."}

  images = tmp_path / "root"
  for k in range(9):
    (images / "folder").mkdir(parents=True, exist_ok=True)
    (images / f"folder/p{k}.png").write_bytes(sample(k).image)
  more = tmp_path / "more.json"
  more.write_text(json.dumps(
    [{"image_path": "folder/p1.png", "prompt": ["Good light.", "It is poor."]}]))
  excluded = tmp_path / "names.txt"
  excluded.write_text("p2\n")
  back = tmp_path / "back"
  status = build_cli.main(["--from", "uniqa", "--images", str(images), "--annotations",
                           f"{exported},{more}", "--out", str(back), "--split", "train", "--quiet",
                           "--max-skip-share", "0.2", "--exclude-ids", str(excluded)])
  assert status == 0
  found = {s.id: s for s in records.open_dataset(back, "train")}
  assert found.keys() == {f"folder/p{k}.png" for k in range(9)} - {"folder/p2.png"}
  assert found["folder/p0.png"].captions == ["It is bad.", "Nice.", "Wow."]
  assert found["folder/p1.png"].captions == ["It is poor.", "Good light."]
  assert found["folder/p3.png"].global_text == "It is good." and not found["folder/p3.png"].captions
  assert cli.main(["export", "--data", str(back), "--out", str(tmp_path / "second.json")]) == 0
  second = {e["image_path"]: e for e in json.loads((tmp_path / "second.json").read_text())}
  for k in (0, 3, 4, 5, 6, 7, 8):
    assert second[f"folder/p{k}.png"] == entries[f"folder/p{k}.png"]


def test_only_a_part_is_described_and_no_group_is_on_two_sides(data, tmp_path):
  iqa, out = tmp_path / "iqa.jsonl", tmp_path / "out"
  run(data, Scripted(lambda p, t: "Fine."), iqa)
  args = ["--from", "described", "--images", data, "--annotations", str(iqa), "--quiet", "--out"]
  assert build_cli.main([*args, str(out), "--part", "reference_1/train"]) == 0
  there = [s.id for split in ("train", "val") for s in records.open_dataset(out, split)]
  source = splits.select(records.open_dataset(data, "all"), "reference_1/train")
  assert sorted(there) == sorted(s.id for s in source) and len(there) == 10
  assert build_cli.main([*args, str(tmp_path / "one"), "--split", "all"]) == 0
  assert len(records.open_dataset(tmp_path / "one", "all")) == 12


@pytest.mark.parametrize("text, words", [
  ("{}", "list of objects"), ('[{"prompt": "x"}]', "entry 0"),
  ('[{"image_path": "a", "prompt": [1]}]', "'prompt'"), ("[", "JSON"),
])
def test_a_json_that_is_not_uniqas_says_where(tmp_path, capsys, text, words):
  (tmp_path / "a.json").write_text(text)
  assert build_cli.main(["--from", "uniqa", "--images", str(tmp_path), "--annotations",
                         str(tmp_path / "a.json"), "--out", str(tmp_path / "o"), "--quiet"]) == 1
  said = capsys.readouterr().err
  assert words in said and "a.json" in said


def test_comments_are_purified_into_descriptions(data, tmp_path, capsys):
  said, comments, out = (tmp_path / name for name in ("iaa.jsonl", "comments.jsonl", "human.jsonl"))
  said.write_text("".join(
    json.dumps({"id": f"p{k}", "task": "iaa", "text": "soft light and calm colours"}) + "\n"
    for k in range(2)))
  comments.write_text("".join(json.dumps(x) + "\n" for x in [
    {"id": "p0", "comments": ["lovely soft light here", "my cat", "calm colours", "my cat"]},
    {"id": "p7", "comments": ["not described"]}]))
  args = ["purify", "--comments", str(comments), "--captions", str(said), "--encoder", "tfidf",
          "--keep", "2", "--out", str(out)]
  assert cli.main(args) == 0
  lines = list(caption_file.read_lines(out))
  assert [(x["id"], x["task"], x["text"]) for x in lines] == [
    ("p0", "iaa_human", "lovely soft light here"), ("p0", "iaa_human", "calm colours")]
  report = capsys.readouterr().out
  assert "3 comments: 2 kept" in report and "comments-of-no-description 1" in report
  assert cli.main(args) == 1 and "is there" in capsys.readouterr().err


def test_captions_longer_than_what_is_read_are_counted(tmp_path, capsys):
  def described(k):
    texts = ["abc", "abcd", "x" * (k + 1)]
    return records.Sample(**{
      **vars(sample(k)), "captions": texts, "global_text": texts[0],
      "caption_sources": ["iqa", "iaa", "iaa"]})

  report = writer.write_split(tmp_path, "all", range(3), described, progress=False)
  writer.finish(tmp_path, {"all": report}, {})
  args = ["lengths", "--data", str(tmp_path), "--tokenizer", "bytes", "--text-len", "4"]
  assert cli.main(args) == 0
  said = capsys.readouterr().out
  # Three bytes and the end are four ids.
  assert "iqa: 0 of 3 captions" in said and "iaa: 3 of 6 captions (50.0 %)" in said
  assert "sentence_sampling" in said
