#!/bin/sh
# Installs the packages of VARIANT (cuda12, cuda13 or cpu) into VIRTUAL_ENV during the build of the image,
# and lists them in requirements.txt. COMPILER=1 adds a C++ compiler and Triton.
set -eu

case $VARIANT in
  cuda12) pins=constraints-cuda12.txt backend= ;;
  cuda13) pins=constraints.txt backend= ;;
  cpu) pins=constraints.txt backend=cpu ;;
  *) echo "VARIANT=$VARIANT is unknown: use cuda12, cuda13 or cpu" >&2; exit 1 ;;
esac

# torch's CPU build needs none of these. On aarch64, torch 2.10 has a CPU build only.
if [ "$backend" = cpu ] || { [ "$VARIANT" = cuda12 ] && [ "$(uname -m)" = aarch64 ]; }; then
  unneeded='^(cuda-|nvidia-(cu|nccl|nv))'
else
  unneeded='^$'
fi
[ -n "$COMPILER" ] || unneeded="$unneeded|^triton=="
grep -vE "$unneeded" "$pins" >requirements.txt

if [ -n "$COMPILER" ]; then
  apt-get update
  apt-get install -qy --no-install-recommends g++
  rm -rf /var/lib/apt/lists/*
fi

pip install --quiet --no-cache-dir --root-user-action=ignore "uv==$UV_VERSION"
python -m venv --without-pip "$VIRTUAL_ENV"
# requirements.txt is complete, so --no-deps is enough.
UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1 uv pip install ${backend:+--torch-backend "$backend"} \
  --no-deps -r requirements.txt || {
  [ -z "$backend" ] || echo "The CPU build of torch was not installed. uv downloads it from PyTorch's own" \
    "index, not from the package index: give this machine access to it, or build without CPU=1." >&2
  exit 1
}
pip uninstall --quiet --yes --root-user-action=ignore uv
