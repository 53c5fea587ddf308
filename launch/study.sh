#!/usr/bin/env bash
# A study of several arms and seeds on a CPU, from nothing to its table; interrupted anywhere, the same
# command goes on. `bash launch/study.sh NAME [--steps N] [--seeds "0 1 2"] [--arms A,B] [--jobs 2]`;
# `--help` tells the names and what they cost.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
cd "$ROOT"
exec "$PY" -m launch.study "$@"
