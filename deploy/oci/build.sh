#!/usr/bin/env bash
# Make the image of the newest Bento with the engine that is here: docker, podman or buildah.
# Usage: deploy/oci/build.sh NAME:TAG    (bentoml on PATH)
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${1:?the name of the image is missing, such as vision-encoder:latest}
version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' bento/version.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)

engine=${ENGINE:-}
for candidate in docker podman buildah; do
  [ -n "$engine" ] || ! command -v "$candidate" >/dev/null || engine=$candidate
done
if [ -z "$engine" ]; then
  echo "there is no docker, podman or buildah here: install one of them" >&2
  exit 1
fi
if [ "$engine" = docker ] && ! docker version >/dev/null 2>&1; then
  echo "docker is here, but its daemon does not answer: start it, or choose ENGINE=podman" >&2
  exit 1
fi

# podman's own format drops what docker's images know besides, such as health checks
export BUILDAH_FORMAT=docker
bentoml containerize vision-encoder:latest --backend "$engine" --image-tag "$name" \
  --opt "label=org.opencontainers.image.title=vision-encoder" \
  --opt "label=org.opencontainers.image.version=$version" \
  --opt "label=org.opencontainers.image.revision=$revision"
echo "made $name with $engine: version $version, revision $revision"
