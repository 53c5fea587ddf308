#!/usr/bin/env bash
# Compiles the published configs for pods, no TPU needed, and prints the README's table:
# `bash launch/plan_targets.sh [names]`. Plans go to runs/plans/NAME.json; one that is there is not
# made again. Each takes 5 to 20 minutes of one core and 2 to 4 GB.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_env
add_tpu_compiler
cd "$ROOT"
out=runs/plans
mkdir -p "$out"

# name, topology, config, batch
targets="
ps3_4k_v5e_256 v5e:16x16 ps3/ps3_4k_siglip_so400m 4096
ps3_4k_v5p_128 v5p:4x4x8 ps3/ps3_4k_siglip_so400m 4096
ps3_1p5k_v5e_256 v5e:16x16 ps3/ps3_1p5k_siglip_so400m 8192
siglip_b16_v5e_64 v5e:8x8 siglip/b16_224 32768
siglip_so400m_v5e_256 v5e:16x16 siglip/so400m14_384 32768
mae_l16_v5e_64 v5e:8x8 mim/mae_l16 4096
pixio_h16_v5e_256 v5e:16x16 mim/pixio_h16 8192
ps3_4k_v5p_64 v5p:4x4x4 ps3/ps3_4k_siglip_so400m 512
ps3_4k_v5p_256 v5p:4x8x8 ps3/ps3_4k_siglip_so400m 2048
ps3_4k_v5p_512 v5p:8x8x8 ps3/ps3_4k_siglip_so400m 4096
"
plans=()
while read -r name topology config batch; do
  [ -n "$name" ] || continue
  if [ "$#" -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  plan="$out/$name.json"
  if [ ! -f "$plan" ]; then
    # Exit code 1 is a plan, too: of a program that does not fit.
    "$PY" -m big_vision_ext.plan --config "configs/$config.py:batch=$batch" \
      --topology "$topology" --json "$plan" || [ $? = 1 ]
  fi
  plans+=("$plan")
done <<<"$targets"
if [ "${#plans[@]}" = 0 ]; then echo "error: no such plan: $*" >&2; exit 2; fi
"$PY" -m big_vision_ext.planning.table "${plans[@]}"
