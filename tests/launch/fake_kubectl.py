#!/usr/bin/env python3
"""A kubectl without a cluster. $FAKE_CLOUD/cluster.json says what it answers:

  "jobset"   list of statuses; each `get jobset` after `apply` sees the next, then always the last
  "pods"     items of `get pods`
  "log"      list of lists of lines; each `logs` gets the next, then none
  "errors"   {VERB: TEXT}: calls that fail

What it was given, and every call, is kept in $FAKE_CLOUD/kubectl.json.
"""

import json
import os
import pathlib
import sys

FOLDER = pathlib.Path(os.environ["FAKE_CLOUD"])


def main():
  """Answers one call."""
  script = json.loads((FOLDER / "cluster.json").read_text())
  file = FOLDER / "kubectl.json"
  state = json.loads(file.read_text()) if file.exists() else {
      "calls": [], "applied": None, "gets": 0, "logs": 0}
  argv = [a for a in sys.argv[1:] if not a.startswith(("--context", "--namespace"))]
  state["calls"].append(" ".join(sys.argv[1:]))
  code, verb = 0, argv[0]
  if verb in script.get("errors", {}):
    print(script["errors"][verb], file=sys.stderr)
    code = 1
  elif verb == "apply":
    state["applied"] = sys.stdin.read()
    print("jobset.jobset.x-k8s.io/x created")
  elif verb == "get" and argv[1] == "jobset":
    if state["applied"] is not None:
      import yaml

      statuses = script.get("jobset", [{"terminalState": "Completed"}])
      there = yaml.safe_load(state["applied"])
      there["status"] = statuses[min(state["gets"], len(statuses) - 1)]
      state["gets"] += 1
      print(json.dumps(there))
  elif verb == "get":
    print(json.dumps({"items": script.get("pods", [])}))
  elif verb == "logs":
    logs = script.get("log", [])
    if state["logs"] < len(logs):
      print("\n".join(logs[state["logs"]]))
    else:
      print("No resources found in default namespace.")
    state["logs"] += 1
  elif verb == "delete":
    state["applied"] = None
  file.write_text(json.dumps(state))
  return code


if __name__ == "__main__":
  sys.exit(main())
