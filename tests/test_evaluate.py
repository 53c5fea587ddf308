"""evaluate: what may be typed, and what is refused before anything is read."""

import json

import pytest

from big_vision_ext import evaluate, train
from tests import toy_data

TOY = "tests/toy_config.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of the toy task, and its data."""
  out = tmp_path_factory.mktemp("toy")
  data = toy_data.write(out / "data")
  assert train.main(["--config", f"{TOY}:data={data},steps=2", "--workdir", str(out / "run")]) == 0
  return out / "run", data


def test_a_runs_own_evaluators_are_run_and_their_results_written(run):
  workdir, _ = run
  assert evaluate.main(["--workdir", str(workdir)]) == 0
  stored = json.loads((workdir / "evaluation.json").read_text())
  assert stored["step"] == 2 and stored["held_out/images"] == 7
  assert "held_out/image_to_text/recall_at_1" in stored


def test_other_evaluators_splits_and_files_can_be_named(run, tmp_path, capsys):
  workdir, data = run
  out = tmp_path / "x.json"
  argv = ["--workdir", str(workdir), "--evals", "image_text_retrieval", "--split", "train",
          "--out", str(out)]
  assert evaluate.main(argv) == 0
  assert json.loads(out.read_text())["image_text_retrieval/images"] == 24
  argv = ["--workdir", str(workdir), "--config", f"{TOY}:data={data}", "--out", str(out),
          "--config.evals.held_out.ks=(2,)", "--config.evals.held_out.input.split=train"]
  assert evaluate.main(argv) == 0
  stored = json.loads(out.read_text())
  assert stored["held_out/images"] == 24 and "held_out/text_to_image/recall_at_2" in stored
  assert evaluate.main(["--workdir", str(workdir), "--evals", "image_txt_retrieval"]) == 2
  assert "Did you mean 'image_text_retrieval'" in capsys.readouterr().err


@pytest.mark.parametrize("argv,message", [
  ([], "either --workdir DIR or --weights FILE"),
  (["--workdir", "a", "--weights", "b"], "either --workdir DIR or --weights FILE"),
  (["--workdir", "a", "--spilt", "val"], "unknown argument '--spilt'"),
  (["--workdir", "a", "--config.lr=1"], "give --config FILE"),
  (["--workdir", "a", "--sweep", "--looks", "1,b"], "--looks=1,b: expected whole numbers"),
  (["--weights", "a", "--compare", "b"], "--compare compares workdirs"),
  (["--weights", "absent.npz"], "absent.npz"),
])
def test_arguments_that_cannot_be_followed_are_told_in_a_line(argv, message, capsys):
  assert evaluate.main(argv) == 2
  err = capsys.readouterr().err
  assert message in err and err.count("\n") <= 2


def test_weights_without_data_ask_for_it(run):
  workdir, _ = run
  subject = evaluate.load(str(workdir))
  bare = evaluate.Subject(subject.task, subject.params, {}, {}, None, "w.npz")
  with pytest.raises(ValueError, match="no config of w.npz names evaluators"):
    evaluate.run(bare)
  with pytest.raises(ValueError, match="give --data DIR"):
    evaluate.run(bare, evals=["image_text_retrieval"], log=lambda _: None)


def test_the_trained_sizes_go_before_those_of_another_config(run):
  workdir, data = run
  subject = evaluate.load(str(workdir), config=f"{TOY}:data={data}",
                          overrides=["input.text_len=9", "input.threads=2"])
  assert subject.input["text_len"] == 4 and subject.input["threads"] == 2
