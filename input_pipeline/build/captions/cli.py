"""python -m input_pipeline.build.captions: describe pictures, choose comments, export both."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from input_pipeline import records
from input_pipeline.build import captioned, skips
from input_pipeline.build.captions import (
  caption_file,
  encoders,
  local,
  prompts,
  purify,
  replay,
  served,
  template,
)
from input_pipeline.build.captions.captioner import Captioner
from input_pipeline.build.captions.describe import Report, describe
from input_pipeline.build.durable import BuildError

# What each captioner takes; a star marks what it cannot do without.
_BACKENDS = {
  "template": (),
  "replay": ("replay*",),
  "served": ("url*", "model*", "api_key_env", "max_tokens", "temperature", "timeout", "calls"),
  "local": ("model*", "max_tokens", "batch", "device"),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns 0: done, 1: an error, 3: pictures are left, 130: interrupted."""
  args = _parser().parse_args(argv)
  try:
    run = {"describe": _describe, "purify": _purify, "lengths": _lengths, "export": _export}
    return run[args.command](args)
  except KeyboardInterrupt:
    print("\ninterrupted: what was answered is kept; the same command goes on from there.",
          file=sys.stderr)
    return 130
  except ValueError as error:  # BuildError, DatasetError, PartError.
    print(f"error: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.build.captions",
    description="Captions of quality and aesthetics for the pictures of a built data set.",
    epilog="What each command does is described in input_pipeline/build/captions/README.md.",
  )
  commands = parser.add_subparsers(dest="command", required=True)

  add = commands.add_parser(
    "describe", help="have pictures described", argument_default=argparse.SUPPRESS).add_argument
  add("--data", required=True, help="built data set")
  add("--split", default="all", help="split of it (default all)")
  add("--task", required=True, choices=("iqa", "iaa"), help="describe quality, or aesthetics")
  add("--out", required=True, help="file of descriptions to write, or to go on with")
  add("--by", required=True, choices=list(_BACKENDS), help="who describes")
  add("--prompt", help="what to ask, or a file of it; may have {level}")
  add("--guidance", choices=prompts.GUIDANCE, default="range",
      help="levels: fifths of the range of scores (default), or of the pictures")
  add("--shard", default="0/1", help="K/N: only the K-th of N parts, K from 0; one --out each")
  add("--limit", type=int, default=None, help="only the first N pictures")
  add("--tries", type=int, default=3, help="answers to ask for, if they are refused or empty")
  add("--quiet", action="store_true", default=False, help="no progress line")
  add("--url", help="served: address, as http://localhost:8000/v1")
  add("--model", help="served: the model's name; local: its directory")
  add("--api-key-env", help="served: environment variable with the key, if one is needed")
  add("--max-tokens", type=int, help="served, local: of an answer (default 200)")
  add("--temperature", type=float, help="served: (default 0.2)")
  add("--timeout", type=float, help="served: seconds to wait for an answer (default 120)")
  add("--calls", type=int, help="served: calls at the same time (default 8)")
  add("--batch", type=int, help="local: pictures at a time (default 8)")
  add("--device", help="local: where to run (default cpu)")
  add("--replay", help="replay: file of descriptions")

  add = commands.add_parser("purify", help="choose people's comments").add_argument
  add("--comments", required=True, help='lines of {"id": ..., "comments": [...]}')
  add("--captions", required=True, help="file of descriptions of the same pictures")
  add("--task", default="iaa", choices=("iqa", "iaa"), help="the descriptions to compare with")
  add("--encoder", required=True, help="import:PACKAGE.MODULE:FUNCTION, npz:FILE or tfidf")
  add("--out", required=True, help="file of descriptions to write (task iaa_human)")
  add("--keep", type=int, default=5, help="comments of a picture (default 5)")
  add("--norm", choices=list(purify.NORMS), default="rank", help="default rank")
  add("--weights", default="1,1", help="of relevance and length (default 1,1)")
  add("--min-words", type=int, default=0, help="of a comment (default 0)")
  add("--min-relevance", type=float, default=-1.0, help="least cosine (default -1)")
  add("--length-cap", type=int, default=0, help="words credited at most; 0 for no end (default)")

  add = commands.add_parser(
    "lengths", help="count the captions that a text tower does not read to the end").add_argument
  add("--data", required=True, help="built data set")
  add("--split", default="all", help="split of it (default all)")
  add("--tokenizer", required=True, help="as input.tokenizer")
  add("--text-len", type=int, default=77, help="ids that are read (default 77)")

  add = commands.add_parser("export", help="write captions as UniQA's JSON").add_argument
  add("--data", required=True, help="built data set")
  add("--split", default=None, help="only this split")
  add("--out", required=True, help="file to write")
  return parser


def _describe(args: argparse.Namespace) -> int:
  captioner = _captioner(args)
  report = describe(
    records.open_dataset(args.data, args.split), captioner, args.out, task=args.task,
    prompt=_prompt(args), guidance=args.guidance, shard=_pair(args.shard, "/", int, "--shard"),
    tries=args.tries, limit=args.limit, progress=not args.quiet,
  )
  print("\n".join(_lines(report, args)))
  return 3 if report.unanswered else 0


def _captioner(args: argparse.Namespace) -> Captioner:
  """The captioner of the options; refuses those that it would ignore."""
  wanted = _BACKENDS[args.by]
  known = {name.rstrip("*") for name in wanted}
  every = {name.rstrip("*") for names in _BACKENDS.values() for name in names}
  given = {name: value for name, value in vars(args).items() if name in every}
  if missing := [n[:-1] for n in wanted if n.endswith("*") and n[:-1] not in given]:
    raise BuildError(f"--by {args.by} needs {_flag(missing[0])}")
  if surplus := sorted(map(_flag, given.keys() - known)):
    raise BuildError(f"--by {args.by} does not take {', '.join(surplus)}")
  if args.by == "template":
    return template.TemplateCaptioner()
  if args.by == "replay":
    return replay.ReplayCaptioner(args.replay)
  if args.by == "local":
    return local.LocalCaptioner(given.pop("model"), **given)
  return served.ServedCaptioner(
    given.pop("url"), given.pop("model"), api_key=_key(given.pop("api_key_env", "")), **given)


def _key(variable: str) -> str:
  if variable and not os.environ.get(variable):
    raise BuildError(f"--api-key-env {variable}: there is no such environment variable, or it is "
                     "empty")
  return os.environ[variable] if variable else ""


def _prompt(args: argparse.Namespace) -> str:
  if not hasattr(args, "prompt"):
    return (template.PROMPTS if args.by == "template" else prompts.PROMPTS)[args.task]
  if not os.path.isfile(args.prompt):
    return args.prompt
  with open(args.prompt, encoding="utf-8") as file:
    return file.read().strip()


def _lines(report: Report, args: argparse.Namespace) -> list[str]:
  lines = [
    f"{args.out}: {report.asked:,} pictures, {report.there:,} there before, {report.answered:,} "
    f"described, {report.reused:,} as another of the same file"
  ]
  if report.again:
    lines.append(f"{report.again:,} answers were refused or empty, and asked for again")
  if report.unanswered:
    lines.append(f"without a description: {skips.by_reason(report.unanswered)}; the same command "
                 "asks for them again")
    lines += [f"  {reason}: {example}" for reason, example in report.examples.items()]
  else:
    lines.append(f"next: python -m input_pipeline.build --from described --images {args.data} "
                 f"--annotations {args.out} --out DIR")
  return lines


def _purify(args: argparse.Namespace) -> int:
  weights = _pair(args.weights, ",", float, "--weights")
  rules = purify.Rules(
    keep=args.keep, norm=args.norm, relevance=weights[0], length=weights[1],
    least_words=args.min_words, least_relevance=args.min_relevance, length_cap=args.length_cap,
  )
  encoder = encoders.make(args.encoder)
  said = {
    name: text
    for name, captions in caption_file.read([args.captions]).items()
    for task, text in captions if task == args.task
  }
  counts, left_out = purify.Statistics(), {"comments-of-no-description": 0, "comment-twice": 0}
  lines: list[dict[str, Any]] = []
  pictures = _pictures(args.comments, said, left_out)
  for name, comments, kept in purify.purify(pictures, encoder, rules, counts):
    lines += [
      {"id": name, "task": "iaa_human", "text": comments[k.place], "relevance": k.relevance,
       "words": k.words, "score": k.score, "by": f"purify {args.encoder}"}
      for k in kept
    ]
  if not lines:
    raise BuildError(f"{args.comments}: no comment was kept ({skips.by_reason(left_out)}; "
                     f"{'; '.join(counts.lines())})")
  if os.path.exists(args.out) and os.path.getsize(args.out):
    raise BuildError(f"{args.out}: is there; its comments would be kept besides the new ones. "
                     "Delete it, or choose another --out")
  with caption_file.CaptionLog(args.out) as log:
    log.add(lines)
  print("\n".join([*counts.lines(), f"not used: {skips.by_reason(left_out)}",
                   f"{args.out}: {len(lines):,} comments"]))
  return 0


def _pictures(
  path: str, said: dict[str, str], left_out: dict[str, int]
) -> Iterator[tuple[str, str, list[str]]]:
  """(id, description, comments) of each line of comments whose picture is described."""
  for where, entry in caption_file.json_lines(path):
    name, comments = entry.get("id"), entry.get("comments")
    if not isinstance(name, str) or not isinstance(comments, list) or not all(
      isinstance(comment, str) for comment in comments
    ):
      raise BuildError(f"{where}: expected an object with the text 'id' and the list of texts "
                       "'comments'")
    once = list(dict.fromkeys(" ".join(comment.split()) for comment in comments))
    left_out["comment-twice"] += len(comments) - len(once)
    if name in said:
      yield name, said[name], once
    else:
      left_out["comments-of-no-description"] += 1


def _lengths(args: argparse.Namespace) -> int:
  cut = captioned.count_cut(args.data, args.split, args.tokenizer, args.text_len)
  for task, (longer, count) in cut.items():
    print(f"{task}: {longer:,} of {count:,} captions ({100 * longer / count:.1f} %) are longer "
          f"than {args.text_len} ids, of which the rest is not read")
  if any(longer for longer, _ in cut.values()):
    print("input.sentence_sampling=True trains on other parts of them as well")
  return 0


def _export(args: argparse.Namespace) -> int:
  count = captioned.export_uniqa(args.data, args.out, split=args.split)
  print(f"{args.out}: {count:,} pictures with captions")
  return 0


def _pair(text: str, mark: str, kind: type, flag: str) -> tuple[Any, Any]:
  try:
    one, other = (kind(part) for part in text.split(mark))
    return one, other
  except ValueError:
    raise BuildError(f"{flag} {text}: expected two numbers with {mark!r} between them") from None


def _flag(name: str) -> str:
  return "--" + name.replace("_", "-")
