r"""Trains what a config describes; started again, it goes on where it was.

  python -m big_vision_ext.train --config FILE[:args] --workdir DIR [--config.key=value ...]

The workdir gets `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/`. The position in
the data and all randomness are functions of the seed and the step, so that a run that was killed
at any moment ends with the same parameters and metrics, bit for bit, as one that was not.

Exit codes: 0 the run is complete, 2 an error (one line on stderr; `--debug` shows where), 143 after
SIGTERM and 130 after Ctrl-C, both with the last step saved; all of them: `core.exit_codes`.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence

import jax

from big_vision_ext import evaluators, tasks, weights
from big_vision_ext.core import (
    checkpoint,
    exit_codes,
    hardware,
    inspection,
    nonfinite,
    processes,
    programs,
    schedules,
    sharding,
    stopping,
    trees,
)
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import console as console_lib
from big_vision_ext.core import metrics as metrics_lib
from big_vision_ext.core import step as step_lib
from big_vision_ext.core.feed import Feed
from big_vision_ext.core.timing import Clock
from big_vision_ext.core.watchdog import Watchdog
from big_vision_ext.core.workdir import Workdir
from input_pipeline import loader


def train(config: config_lib.Config, workdir: Workdir, console: console_lib.Console,
          stack: contextlib.ExitStack, *, fall_back: bool = False,
          roll_back: nonfinite.RollBackError | None = None) -> int:
  """Runs an experiment to its end, or until it is asked to stop.

  Args:
    config: what to run.
    workdir: where.
    console: tells how it goes.
    stack: gets what has to be closed afterwards, whatever happens.
    fall_back: if the last checkpoint is damaged, go on from the one before.
    roll_back: why an earlier call gave up, if it did: where in the data to go on.

  Returns:
    The process's exit code.

  Raises:
    ValueError: the config, the data or a checkpoint does not fit; the message says what.
    RollBackError: to be called again with it.
  """
  watchdog = Watchdog(config.stall_seconds, workdir.path)
  stack.callback(watchdog.stop)  # First in, last out: what is closed on the way is watched too.

  ### How long is the run?
  input_config = config_lib.build(loader.InputConfig, config.input, "config.input")
  epoch_examples = loader.dataset_size(input_config)

  def steps(name, duration, total=None):
    return duration and duration.steps(batch_size=config.batch_size, total_steps=total, name=name,
                                       epoch_examples=epoch_examples)

  total = steps("total", config.total)
  console.start(total)
  every = {name: steps(name, getattr(config, name), total) for name in ("log", "ckpt", "keep_ckpt")}
  eval_every = {n: steps(f"evals.{n}.eval", e.eval, total) for n, e in config.evals.items()}

  ### Is there anything left to do?
  checkpoints = checkpoint.Checkpoints(workdir.path, keep_every=every["keep_ckpt"] or None)
  stack.callback(checkpoints.close)
  if checkpoints.steps() and checkpoints.steps()[-1] >= total:
    console.say(f"This run is complete: step {checkpoints.steps()[-1]} of {total}, "
                f"in {workdir.path}")
    console.values(metrics_lib.last_values(workdir.path))
    return 0

  ### Devices, model, optimiser.
  mesh = sharding.make_mesh(config.mesh)
  rules = sharding.merge_rules(config.sharding_rules)
  rows = sharding.batch_sharding(mesh, config.batch_size, config.optim.accum_steps)
  console.say(f"{jax.device_count()} {jax.devices()[0].device_kind} device(s) as "
              f"{dict(mesh.shape)}, {jax.process_count()} process(es); {epoch_examples:,} examples "
              f"an epoch, batches of {config.batch_size}, {total:,} steps")
  task = tasks.make(config.task, config.model)
  evals = {n: evaluators.make(
      n, {"type": e.type, **e.args}, task=task, mesh=mesh, batch_sharding=rows,
      input_config=config_lib.build(loader.InputConfig, {**config.input, **e.input},
                                    f"config.evals.{n}.input"))
      for n, e in config.evals.items()}
  schedule = schedules.make(config.schedule, total_steps=total, batch_size=config.batch_size,
                            epoch_examples=epoch_examples)
  with console.doing("Laying out the model"):
    shapes, shardings, tx, init = step_lib.plan_state(task, config, mesh, rules)
  console.say(trees.overview(shapes["params"], limit=48))

  ### Where do we begin: this run's last checkpoint, another run, other weights, or nothing?
  with console.doing("Looking for a checkpoint"):
    restored = checkpoints.restore_latest(shapes, shardings, fall_back)
  clock_state, meta = (restored[1]["clock"], restored[1]) if restored else ({}, {})
  # What the weights began from, for the cards of exports.
  origin = checkpoint.origin(meta)
  if restored:
    state = restored[0]
  elif config.resume:
    with console.doing(f"Resuming {config.resume}"):
      source, at = checkpoint.find(config.resume)
      state, meta = source.restore(at, shapes, shardings)
    origin = checkpoint.origin(meta)
  else:
    with console.doing("Initialising the parameters"), sharding.use(mesh, ()):
      state = jax.jit(init, out_shardings=shardings)(jax.random.key(config.seed))
      jax.block_until_ready(state)
    if config.init:
      with console.doing(f"Loading weights from {config.init.path}"):
        params, source = weights.init_params(config.init, state["params"], shardings["params"])
        state = step_lib.with_params(state, params)
      origin = {"init": [source]}
    if hasattr(task, "begin"):
      begin = jax.jit(task.begin, out_shardings=shardings["params"])
      with console.doing("Preparing the parameters"), sharding.use(mesh, ()):
        state = step_lib.with_params(state, begin(state["params"]))
  start = int(state["step"])
  if start >= total:
    raise nonfinite.TrainingError(f"config.resume={config.resume} has taken {start} steps already; "
                                  f"this run is to end after {total}")
  if start:
    console.say(f"Going on from step {start} of {total}")

  ### The input, from that step on, and the compiled step.
  account, roll_backs = dict(meta.get("feed", {})), meta.get("roll_backs", 0)
  if roll_back:
    account["passed_over"], roll_backs = roll_back.next_batch - start, roll_back.count
  feed = Feed(input_config, task.batch_spec(config.batch_size), rows, start=start, account=account,
              batch_size=config.batch_size, seed=config.seed)
  stack.callback(feed.close)
  clock = Clock(step=start, batch_size=config.batch_size, total_steps=total,
                flops_per_example=getattr(task, "flops_per_example", None), **clock_state)
  policy = nonfinite.Policy(config, skipped=int(state["skipped"]), roll_backs=roll_backs)

  def report(step, scalars, told, check_only=False):
    scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
    _, waited, *skipped = told.rows().T
    if writer and not check_only:
      writer.write_scalars(
          step, scalars | {"examples_seen": step * config.batch_size} | feed.metrics(skipped)
          | policy.metrics() | clock.report(step, waited.max() / 1000))
    policy.check(step, scalars, feed.passed_over)

  def evaluate(step, names):
    results = {}
    for name in names:
      with console.doing(f"Evaluating {name}"):
        values = evals[name].run(step_lib.evaluated(state))
      values = {f"{name}/{k}": v for k, v in values.items()}
      if writer:
        writer.write_scalars(step, values)
      results |= values
    return results

  def due(step, interval):
    return step == total or bool(interval) and step % interval == 0

  stack.enter_context(sharding.use(mesh, rules))
  stopper = stack.enter_context(stopping.Stopper())

  with console.doing("Reading the first batch"):
    batch = feed.next()
  with console.doing("Compiling the training step"):
    began = time.perf_counter()
    jitted = step_lib.jitted(task, config, tx, schedule, mesh, shardings, rows)
    compiled = programs.compiled(jitted, state, batch)
  console.say(inspection.describe(compiled, time.perf_counter() - began, state["params"]))
  train_step = inspection.checked(jitted) if config.debug.checks else compiled

  workdir.claim()
  writer = None
  if jax.process_index() == 0:
    writer = metrics_lib.make_writer(workdir.path, start, console)
    stack.callback(writer.close)

  ### The loop. The host looks at the metrics of a step while the device works on the next one.
  exchange = processes.Exchange(mesh)
  profile = inspection.Profile(config.profile_steps, workdir.path)
  stack.callback(profile.close)
  stack.enter_context(watchdog)
  clock.start()
  previous = pending = None
  for step in range(start + 1, total + 1):
    watchdog.beat(f"working on step {step}")
    with profile.step(step):
      if batch is None:
        with clock.waiting():
          batch = feed.next()
      state, scalars = train_step(state, batch)
      batch = None
      told, known = exchange.tell([stopper.signal, 1000 * clock.waited, *feed.skipped()])
      jax.block_until_ready(previous)
    previous = scalars
    console.progress(step - 1, clock.pace(step - 1))
    if pending:
      report(*pending)
    pending = (step, scalars, told) if step == 1 or due(step, every["log"]) else None

    stop = known and stopping.EXIT_CODES.get(int(known.rows()[:, 0].max()))
    save = stop or due(step, every["ckpt"])
    names = [n for n in evals if due(step, eval_every[n])]
    if save or names:
      # What is reported up to a step is on disk before its checkpoint is: a resumed run takes
      # back later lines and never misses earlier ones.
      try:
        report(step, scalars, told, check_only=not pending)
      except nonfinite.RollBackError:
        if not stop:
          raise
        # Started again, the run comes to this step once more, and goes back then.
        console.say(f"Stopped after step {step} of {total}, which is not saved")
        return stop
      pending = None
      with clock.pause(), watchdog.patient(f"evaluating or saving step {step}"):
        results = evaluate(step, names)
        if save:
          if writer:
            writer.flush()
          checkpoints.save(step, state, {
              "config": config_lib.to_dict(config), "clock": clock.state(), **origin,
              "feed": feed.account(told.rows().T[2:]), "roll_backs": roll_backs})
    if stop and step < total:
      with watchdog.patient(f"saving step {step}"):
        checkpoints.wait()
      console.say(f"Stopped after step {step} of {total}, which is saved; "
                  "the same command goes on from there")
      return stop

  with watchdog.patient(f"saving step {total}"):
    checkpoints.wait()
  if evals:
    # All of them have just run: `evaluate` would find the same.
    workdir.keep_results({"step": float(total)} | results)
  console.say(f"Done: step {total}, in {workdir.path}")
  console.values(metrics_lib.last_values(workdir.path))
  return exit_codes.COMPLETE


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The command line: (options, config overrides as "key=value").

  Raises:
    ConfigError: an argument that is neither.
  """
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.train", description=__doc__.split("\n\n")[0],
      epilog="--config.KEY=VALUE overrides a setting, e.g. --config.optim.b2=0.95",
      allow_abbrev=False)
  parser.add_argument("--config", help="file with get_config, and :args for it")
  parser.add_argument("--workdir", help="directory of this run")
  parser.add_argument("--resume_with_changes", action="store_true",
                      help="go on in the workdir though the config has changed")
  parser.add_argument("--fallback_checkpoint", action="store_true",
                      help="if the last checkpoint is damaged, go on from the one before")
  parser.add_argument("--distributed", action="store_true",
                      help="this is one of several processes")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  options, overrides = config_lib.split_overrides(parser, argv)
  if not options.config or not options.workdir:
    raise config_lib.ConfigError("expected --config FILE and --workdir DIR; --help tells more")
  return options, overrides


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  several = "--distributed" in argv or "JAX_NUM_PROCESSES" in os.environ

  def command() -> int:
    options, overrides = parse_args(argv)
    if several:
      # Without the settings by hardware: which one it is, is known once the processes have met.
      plain = config_lib.resolve(config_lib.load(options.config, overrides))
      sharding.join_processes(plain.peer_seconds)
    kind = jax.devices()[0].device_kind
    config = config_lib.resolve(config_lib.load(options.config, overrides, device_kind=kind))
    console_lib.set_up_logging(options.debug)
    first = jax.process_index() == 0
    console = console_lib.Console(quiet=not first)
    workdir = Workdir(options.workdir, config, writes=first,
                      accept_changes=options.resume_with_changes)
    with contextlib.closing(workdir):
      if own := config.hardware.get(hardware.name(kind)):
        console.say(f"On {hardware.name(kind)} these settings are used: {own}")
      if workdir.changes:
        console.say("The config has changed in\n  " + "\n  ".join(workdir.changes))
      roll_back = None
      while True:
        try:
          with contextlib.ExitStack() as stack:
            return train(config, workdir, console, stack, fall_back=options.fallback_checkpoint,
                         roll_back=roll_back)
        except nonfinite.RollBackError as error:
          # Without its traceback, which holds on to the arrays of the state.
          roll_back = error.with_traceback(None)
        console.say(f"ROLL-BACK: {roll_back}")

  code = lambda: console_lib.exit_code(command, debug="--debug" in argv)
  return processes.run_one_of_several(code) if several else code()


if __name__ == "__main__":
  sys.exit(main())
