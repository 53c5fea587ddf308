#!/usr/bin/env python3
"""sbatch, srun, scancel and scontrol without a cluster; which one, its name says.

sbatch keeps what it was given in $FAKE_SLURM and names job 77. srun runs $SLURM_NTASKS processes at
once and ends with the largest exit code, as the real one. scancel signals those processes; scontrol
requeue notes it and ends the job's script, as Slurm does.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["FAKE_SLURM"])


def note(name, argv):
  """Keeps a call."""
  with open(FOLDER / "calls", "a") as file:
    file.write(json.dumps([name, *argv]) + "\n")


def main():
  """Runs one call."""
  name, argv = sys.argv[1], sys.argv[2:]
  note(name, argv)
  if name == "sbatch":
    if (FOLDER / "refuse").exists():
      print("sbatch: error: QOSMaxGRESPerUser", file=sys.stderr)
      return 1
    keys = ("BVE_VENV", "BVE_GPUS", "BVE_MAX_REQUEUES")
    (FOLDER / "env.json").write_text(json.dumps({k: os.environ[k] for k in keys}))
    print("77;cluster")
  elif name == "srun":
    first = next(i for i, word in enumerate(argv) if not word.startswith("-"))
    if (FOLDER / "no-launch").exists():
      return 0
    tasks = [subprocess.Popen(argv[first:], env={**os.environ, "SLURM_PROCID": str(rank)})
             for rank in range(int(os.environ["SLURM_NTASKS"]))]
    (FOLDER / "pids").write_text(" ".join(str(task.pid) for task in tasks))
    return max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks))
  elif name == "scancel":
    # All processes of the step: the shells, and what runs in them.
    for pid in (FOLDER / "pids").read_text().split():
      children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
      for process in [pid, *(children.read_text().split() if children.exists() else [])]:
        try:
          os.kill(int(process), signal.SIGTERM)
        except ProcessLookupError:
          pass
  elif name == "scontrol":
    os.killpg(os.getpgid(0), signal.SIGKILL)
  return 0


if __name__ == "__main__":
  sys.exit(main())
