#!/usr/bin/env bash
# Makes a host ready to train: Python, environment, storage. Run from the root of the code on every
# host of a TPU VM (by launch/tpu_vm.py) and in every container on GKE (by launch/gke.py); may be run
# again, and then does what is missing.
#   BVE_MOUNTS   what to mount: "gs://BUCKET=/gcs/BUCKET nfs://SERVER/EXPORT=/mnt/x"
#   BVE_VENV     where the environment goes (default: ~/.bve/venv)
set -euo pipefail
# As the first process of a container, this shell would not end on its own.
trap 'exit 143' TERM
export BVE_VENV="${BVE_VENV:-$HOME/.bve/venv}"
UV_VERSION=0.13.9

say() { echo "host_setup: $*"; }
fail() { echo "error: $(hostname): $*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
# A fresh machine updates itself for some minutes, with the package lock in hand.
apt_install() {
  as_root apt-get -o DPkg::Lock::Timeout=600 update -qq
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 install -y -qq "$@" >/dev/null
}

install_python() {
  # The images of TPU VMs have Python 3.8 to 3.10.
  say "installing Python 3.12 with uv $UV_VERSION"
  curl -LsSf --retry 5 "https://astral.sh/uv/$UV_VERSION/install.sh" |
    env UV_INSTALL_DIR="$HOME/.bve/uv" INSTALLER_NO_MODIFY_PATH=1 sh >/dev/null
  "$HOME/.bve/uv/uv" python install --quiet 3.12
  "$HOME/.bve/uv/uv" python find 3.12
}

install_gcsfuse() {
  say "installing gcsfuse"
  # shellcheck disable=SC1091
  . /etc/os-release
  curl -LsSf --retry 5 https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    as_root tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \
    "https://packages.cloud.google.com/apt gcsfuse-$VERSION_CODENAME main" |
    as_root tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_install fuse gcsfuse
}

mount_bucket() {
  command -v gcsfuse >/dev/null || install_gcsfuse
  # Other hosts write to it as well: nothing is remembered of what was there, or not there, a moment
  # ago. Checkpoints are directories that get their final name when they are whole; a bucket without
  # a hierarchical namespace renames file by file, as many as the limit allows.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    --rename-dir-limit=200000 "$1" "$2"
}

mount_nfs() {
  command -v mount.nfs >/dev/null || apt_install nfs-common
  # NFS 3, as Filestore's basic tier has it; locks are its server's.
  as_root mount -t nfs -o rw,hard,vers=3 "$1" "$2"
}

check_mount() {
  local probe
  probe="$2/.bve-probe-$(hostname)-$$"
  { echo probe >"$probe" && rm "$probe"; } 2>/dev/null ||
    fail "$1 is mounted at $2 and cannot be written. For a bucket, give the hosts' service account" \
      "the role storage.objectUser on it: gcloud storage buckets add-iam-policy-binding $1" \
      "--member=serviceAccount:ACCOUNT --role=roles/storage.objectUser"
}

for pair in ${BVE_MOUNTS:-}; do
  source_="${pair%%=*}"
  place="${pair#*=}"
  if ! mountpoint -q "$place"; then
    say "mounting $source_ at $place"
    # What a crashed gcsfuse leaves is no mount point and no directory.
    as_root umount -l "$place" 2>/dev/null || true
    as_root mkdir -p "$place"
    case "$source_" in
      gs://*)
        as_root chown "$(id -u):$(id -g)" "$place"
        mount_bucket "${source_#gs://}" "$place" || fail "mounting $source_ failed (see above)" ;;
      nfs://*)
        server="${source_#nfs://}"
        mount_nfs "${server%%/*}:/${server#*/}" "$place" ||
          fail "mounting $source_ failed (see above)" ;;
      *) fail "BVE_MOUNTS=$pair: expected gs:// or nfs://" ;;
    esac
  fi
  check_mount "$source_" "$place"
done

# shellcheck source=launch/env.sh
source launch/env.sh
if [ ! -x "$BVE_VENV/bin/python" ] && ! find_python >/dev/null 2>&1; then
  BVE_PYTHON="$(install_python | tail -n 1)"
  export BVE_PYTHON
fi
setup_env
if [ -z "${BVE_NO_TPU:-}" ]; then
  if [ -f requirements-tpu.txt ]; then
    stamp="$BVE_VENV/.installed-tpu"
    wanted="$(cksum <requirements-tpu.txt)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
      "$PY" -m pip install -qq --disable-pip-version-check -r requirements-tpu.txt ||
        fail "installing requirements-tpu.txt failed (see above)"
      echo "$wanted" >"$stamp"
    fi
  fi
  # Without it jax would train on the CPU, and say so once.
  "$PY" -c 'import libtpu' 2>/dev/null ||
    fail "libtpu is not installed in $BVE_VENV; it belongs into requirements-tpu.txt"
fi
versions="$("$PY" -c 'import sys; from importlib.metadata import version
print("Python", sys.version.split()[0] + ", jax", version("jax"))')" ||
  fail "jax is not installed in $BVE_VENV; it belongs into requirements.txt"
say "ready: $versions"
