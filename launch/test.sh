#!/usr/bin/env bash
# Sets up .venv and runs the tests: `bash launch/test.sh [--all] [pytest arguments]`.
# --all also runs the tests marked slow, as continuous integration does, and installs the TPU
# compiler for those that plan for pods and the tables of scores for those that read them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  select=()
  shift
  add_tpu_compiler
  add_label_tables
fi
# Files of tests side by side, as many as there are cores, up to four: each holds a few GB.
workers=$(( $(nproc) < 4 ? $(nproc) : 4 ))
exec "$PY" -m pytest -n "$workers" --dist loadfile ${select[@]+"${select[@]}"} "$@"
