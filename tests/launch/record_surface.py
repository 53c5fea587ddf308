"""Records which flags the real gcloud's commands take, for the fake one of the tests.

  python tests/launch/record_surface.py > tests/launch/gcloud_surface.json

Needs gcloud with the alpha component. Nothing is executed and no account is needed: `gcloud meta
lint-gcloud-commands` only parses.
"""

import json
import os
import subprocess
import sys
import tempfile

COMMANDS = (
    "gcloud compute tpus queued-resources create n --zone=us-west4-a",
    "gcloud alpha compute tpus queued-resources create n --zone=us-west4-a",
    "gcloud compute tpus queued-resources describe n --zone=us-west4-a",
    "gcloud compute tpus queued-resources delete n --zone=us-west4-a",
    "gcloud compute tpus tpu-vm describe n --zone=us-west4-a",
    "gcloud compute tpus tpu-vm ssh n --zone=us-west4-a",
    "gcloud alpha compute tpus tpu-vm ssh n --zone=us-west4-a",
    "gcloud compute tpus tpu-vm scp a n: --zone=us-west4-a",
    "gcloud alpha compute tpus tpu-vm scp a n: --zone=us-west4-a",
    "gcloud storage cp a gs://b/a",
    "gcloud storage ls gs://b/a",
)
GLOBAL = ("project", "quiet", "format", "verbosity", "account")


def lint(commands):
  """What gcloud's own parser says of each command line."""
  with tempfile.TemporaryDirectory() as folder:
    file = os.path.join(folder, "commands.json")
    with open(file, "w") as out:
      json.dump([{"command_string": command} for command in commands], out)
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"], check=True,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        # An empty configuration: no account, so that nothing could be done even by mistake.
        env={**os.environ, "CLOUDSDK_CONFIG": folder, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
             "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1"})
    return json.loads(done.stdout)


def _flags(node, found):
  for argument in node["arguments"]:
    if "group" in argument:
      _flags(argument["group"], found)
    elif not argument.get("positional") and (not argument.get("global")
                                             or argument["name"] in GLOBAL):
      found[argument["name"]] = argument.get("choices", argument["type"] == "bool")
  return found


def _required(node, found):
  # Groups of which exactly one must be given, as lists of flags.
  for argument in node["arguments"]:
    if "group" in argument:
      group = argument["group"]
      if group.get("mutex") and group.get("required"):
        found.append([sorted(_flags({"arguments": [a]}, {})) for a in group["arguments"]])
      else:
        _required(group, found)
    elif argument.get("required") and not argument.get("positional"):
      found.append([[argument["name"]]])
  return found


def main():
  """Prints the surface as JSON: command -> flags (True: takes no value) and required groups."""
  version = subprocess.run(["gcloud", "--version"], capture_output=True, text=True).stdout
  surface = {"recorded from": version.splitlines()[0]}
  for entry in lint(COMMANDS):
    tree = entry["args_structure"]
    surface[entry["command_string_no_args"]] = {
        "flags": dict(sorted(_flags(tree, {}).items())), "one of": _required(tree, [])}
  lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in surface.items()]
  sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  main()
