#!/usr/bin/env bash
# Build the image from the checkout with docker, podman or buildah (ENGINE, or the first that exists).
# Usage: deploy/oci/build.sh NAME:TAG [options of `ENGINE build`]
#   CUDA=13          with the newest torch, which needs NVIDIA driver 580 (default 12: driver 525 or newer)
#   CPU=1            without CUDA
#   COMPILER=1       include the compiler and Triton, which COMPILE=true needs
#   PUSH=1           push it, with a bill of materials and its provenance (docker with a buildx builder)
#   BAKE_WEIGHTS=1   include the weights of MODEL_NAME and MODEL_PRETRAINED, fetched into .data/weights
#                    (needs the project's Python on PATH)
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${1:?the name of the image is missing, for example vision-encoder:latest}
version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' bento/version.py)
revision=$(git rev-parse HEAD 2>/dev/null || true)
[ -z "$revision" ] || [ -z "$(git status --porcelain)" ] || revision+=-dirty

case ${CPU:+cpu}${CUDA:-} in
  "" | 12) variant=cuda12 ;;
  13) variant=cuda13 ;;
  cpu) variant=cpu ;;
  *) echo "CPU=${CPU:-} CUDA=${CUDA:-}: set CPU=1, CUDA=12 or CUDA=13" >&2; exit 1 ;;
esac

engine=${ENGINE:-}
for candidate in docker podman buildah; do
  [ -n "$engine" ] || ! command -v "$candidate" >/dev/null || engine=$candidate
done
if [ -z "$engine" ]; then
  echo "docker, podman and buildah are not installed: install one of them" >&2
  exit 1
fi
if [ "$engine" = docker ] && ! docker version >/dev/null 2>&1; then
  echo "docker is installed, but its daemon does not answer: start it, or set ENGINE=podman" >&2
  exit 1
fi

build=("$engine" build)
if [ -n "${PUSH:-}" ]; then
  if [ "$engine" != docker ] || [ -n "${BAKE_WEIGHTS:-}" ]; then
    echo "PUSH=1 needs docker, and cannot push baked weights: build without PUSH=1, then run $engine push $name" >&2
    exit 1
  fi
  # `docker build` would use Docker's own builder, which makes no bill of materials.
  build=(docker buildx build --push --sbom=true --provenance=mode=max)
fi

model=${MODEL_NAME:-${VISION_MODEL_NAME:-ViT-L-14}}
pretrained=${MODEL_PRETRAINED:-${VISION_MODEL_PRETRAINED:-openai}}
if [ -n "${BAKE_WEIGHTS:-}" ]; then
  case $model in local-dir:*)
    echo "BAKE_WEIGHTS=1 needs weights from a hub, not $model: mount the folder instead (every image has the bundled model)" >&2
    exit 1
  esac
  weights=.data/weights/${model//[\/:]/-}-$pretrained
  mkdir -p "$weights"
  # Fetch before the build, which takes minutes.
  MODEL_NAME=$model MODEL_PRETRAINED=$pretrained HF_HUB_CACHE=$PWD/$weights python -m bento.fetch_weights
  if ! compgen -G "$weights/models--*" >/dev/null; then
    echo "the weights of $model $pretrained do not come from a hub: mount them instead (MODEL_PRETRAINED=/path)" >&2
    exit 1
  fi
fi

# Podman's own format has no health checks.
export BUILDAH_FORMAT=docker
"${build[@]}" --tag "$name" --file deploy/oci/Dockerfile --build-arg "VARIANT=$variant" \
  --build-arg "COMPILER=${COMPILER:-}" --build-arg "REVISION=$revision" \
  --label "org.opencontainers.image.version=$version" "${@:2}" .
if [ -n "${BAKE_WEIGHTS:-}" ]; then
  "$engine" build --tag "$name" --file deploy/oci/weights.Dockerfile --build-arg "IMAGE=$name" \
    --build-arg "NAME=$model" --build-arg "PRETRAINED=$pretrained" "$weights"
fi
echo "built $name ($variant) with $engine: version $version, revision ${revision:-unknown}${BAKE_WEIGHTS:+, weights of $model $pretrained}"
