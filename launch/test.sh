#!/usr/bin/env bash
# Sets up .venv and runs the tests: `bash launch/test.sh [--all | --thorough] [pytest arguments]`.
# --all also runs the tests marked slow, as continuous integration does, and installs the TPU
# compiler for those that plan for pods and the tables of scores for those that read them.
# --thorough adds what is marked thorough: more seeds, sizes and combinations of the same.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"
select="not slow and not thorough"
if [ "${1:-}" = "--all" ] || [ "${1:-}" = "--thorough" ]; then
  select="not thorough"
  if [ "$1" = "--thorough" ]; then select=""; fi
  shift
  add_tpu_compiler
  add_label_tables
fi
# Files of tests side by side, as many as there are cores, up to four: each holds a few GB.
workers=$(( $(nproc) < 4 ? $(nproc) : 4 ))
# The same small programs are compiled by many tests, workers, child processes and checkouts: compile
# each once, and forget after a month.
cache="${BVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/big_vision_ext}/jax"
mkdir -p "$cache"
find "$cache" -type f -mtime +30 -delete
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
# Files with slow tests come first (tests/conftest.py), so that no worker ends long after the other.
exec "$PY" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder -m "$select" "$@"
