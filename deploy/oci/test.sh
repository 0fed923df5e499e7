#!/usr/bin/env bash
# Build the image with podman from a fresh clone, with the changes of this checkout. Compare the container's
# answers with the checkout's, and run the smoke tests (`make image-test`). It needs root and Debian's
# packages; without them it prints SKIPPED and why.
#
# No image registry is used: the base image is made from Debian's packages, under the name in the
# Dockerfile. This tests the Dockerfile, the pinned packages, the entry point and the answers of the
# container, but not the official base image. All files are in .data/oci. Wheels, packages and the
# base image stay there for the next run. The rest is removed at the end, and so are the Debian
# packages that the test installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

PACKAGES=(podman runc buildah mmdebstrap)
PORT=${PORT:-18001}
work=$PWD/.data/oci
image=localhost/vision-encoder:test
bin=${BIN:-$PWD/.venv/bin}

skip() {
  case " ${REQUIRED_TOOLS:-} " in *" Podman "*) echo "image-test: FAILED: $1"; exit 1 ;; esac
  echo "image-test: SKIPPED: $1"
  exit 0
}

[ "$(id -u)" = 0 ] || skip "it needs root"
command -v apt-get >/dev/null || skip "it needs Debian's packages"
[ "$(df --output=avail -BG "$PWD" | tail -1 | tr -dc 0-9)" -ge 30 ] || skip "it needs 30 GB of disk"

mkdir -p "$work"/{cache,run}
dpkg-query -W -f '${Package}\n' | sort >"$work/packages-before"

# Set these before the first podman command, so that the clean-up never touches other containers.
export CONTAINERS_STORAGE_CONF=$work/storage.conf CONTAINERS_CONF=$work/containers.conf

cleanup() {
  status=$?
  if [ -s "$CONTAINERS_STORAGE_CONF" ] && command -v podman >/dev/null; then
    podman rm -f -t 5 --all >/dev/null 2>&1 || true
    podman rmi -f --all >/dev/null 2>&1 || true
  fi
  umount "$work/store/overlay" 2>/dev/null || true
  rm -rf "$work/store" "$work/run" "$work/clone" "$work"/*.conf "$work/uv.toml"
  dpkg-query -W -f '${Package}\n' | sort | comm -13 "$work/packages-before" - >"$work/packages-new"
  if [ -s "$work/packages-new" ]; then
    DEBIAN_FRONTEND=noninteractive xargs apt-get purge -qq -y <"$work/packages-new" >/dev/null ||
      echo "could not remove these packages, which the test installed: $(xargs <"$work/packages-new")"
  fi
  exit $status
}
trap cleanup EXIT

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
    >"$work/apt.log" 2>&1 || skip "the packages ${missing[*]} could not be installed: $(tail -n 1 "$work/apt.log")"
fi

# Podman gets its own storage and configuration.
cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$work/store"
runroot = "$work/run"
CONF
cat >"$CONTAINERS_CONF" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
echo "system-certs = true" >"$work/uv.toml"
# The build uses the network, certificates and caches of this machine.
sed "/nproc/a netns = \"host\"\nvolumes = [\"/etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro\", \"$work/uv.toml:/etc/uv/uv.toml:ro\", \"$work/cache:/root/.cache\"]" \
  "$CONTAINERS_CONF" >"$work/build.conf"

base=python:$(sed -n 's/^ARG PYTHON_VERSION=//p' deploy/oci/Dockerfile)-slim
if [ ! -s "$work/base.tar" ]; then
  echo "making the base image $base"
  mmdebstrap --quiet --mode=root --variant=minbase \
    --include=ca-certificates,python3,python3-venv,python3-pip \
    --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED "$1"/etc/resolv.conf' \
    --customize-hook='ln -sf python3 "$1"/usr/bin/python' \
    --customize-hook='echo "APT::Keep-Downloaded-Packages \"false\";" >"$1"/etc/apt/apt.conf.d/99drop' \
    bookworm "$work/base.part.tar" >"$work/base.log" 2>&1 || {
    rm -f "$work/base.part.tar"
    skip "the base image could not be made: $(tail -n 1 "$work/base.log")"
  }
  mv "$work/base.part.tar" "$work/base.tar"
fi
podman import -q "$work/base.tar" "docker.io/library/$base" >/dev/null
said=$(podman run --rm --network=host "docker.io/library/$base" true 2>&1) ||
  skip "podman cannot run containers: $(tail -n 1 <<<"$said")"

echo "building the image from a fresh clone"
rm -rf "$work/clone"
git clone -q . "$work/clone"
git diff HEAD --binary | git -C "$work/clone" apply --allow-empty
CONTAINERS_CONF=$work/build.conf ENGINE=podman timeout 1500 "$work/clone/deploy/oci/build.sh" "$image" \
  --build-arg UV_NO_CACHE=false >"$work/build.log" 2>&1 || {
  tail -n 30 "$work/build.log"
  echo "image-test: FAILED: the build of the image failed; its log is .data/oci/build.log"
  exit 1
}
podman images --format '{{.Repository}}:{{.Tag}} {{.Size}}' "$image"
left=$(podman run --rm --entrypoint sh "$image" -c 'command -v gcc g++ make git uv' || true)
podman history --no-trunc --format '{{.Size}}\t{{.CreatedBy}}' "$image" | grep -E '^[0-9.]+ [MG]B' |
  sed -E 's/\|[0-9]+ .*\/bin\/sh -c //' | cut -c1-120

serve() { # [OPTIONS OF podman run]: start the service in $container and wait until it is ready
  container=$(podman run -d --network=host --read-only --read-only-tmpfs=false --tmpfs /tmp:rw,noexec \
    --cap-drop=all --security-opt=no-new-privileges --stop-timeout 40 \
    -v /data/qdrant -v /data/thumbnails \
    -e BENTOML_HOME=/tmp/bentoml -e HOST=127.0.0.1 -e "PORT=$PORT" \
    -e MODEL_NAME=local-dir:models/shapes -e DEVICE=cpu -e DTYPE=float32 \
    -e QDRANT_ENABLED=true -e QDRANT_PATH=/data/qdrant -e THUMBNAILS_PATH=/data/thumbnails "$@" "$image")
  for _ in {1..120}; do
    ready && return
    [ "$(podman inspect -f '{{.State.Running}}' "$container")" = true ] || break
    sleep 1
  done
  problem="the container is not ready"
}
ready() { curl -sf -m 5 -o "$work/ready" "http://127.0.0.1:$PORT/readyz"; }
worker() { podman top "$container" hpid args | sed -n 's/^\([0-9]*\) .*worker\.service.*/\1/p'; }
smoke() { # SUMMARY: run the smoke tests, which must end with it
  echo "smoke tests: $1"
  VISION_ENCODER_URL=http://127.0.0.1:$PORT ROUTER_URL=http://127.0.0.1:$((PORT + 1)) \
    IMAGE_PORT=$((PORT + 2)) "$work/clone/test-vision-encoder.sh" >"$work/smoke.log" 2>&1 &&
    grep -q "$1" "$work/smoke.log" || { tail -n 30 "$work/smoke.log"; problem="the smoke tests did not end with: $1"; }
}
stop() {
  podman stop -t 30 "$container" >/dev/null
  status=$(podman inspect -f '{{.State.ExitCode}}' "$container")
  [ "$status" = 0 ] || problem=${problem:-"the container exited with status $status on SIGTERM"}
}

echo "running it without root, capabilities and writable folders except /tmp and volumes"
problem=
serve
podman run -d --network=host --read-only --tmpfs /tmp --cap-drop=all -e BENTOML_HOME=/tmp/bentoml \
  -e "VISION_ENCODER_URL=http://127.0.0.1:$PORT" -w /home/bentoml/bento/src \
  "$image" python -m router_client --port "$((PORT + 1))" >"$work/router"
[ "$(podman exec "$container" id -u)" != 0 ] || problem="the container runs as root"
[ -z "$left" ] || problem="the image has build tools: $(xargs <<<"$left")"
revision=$(git -C "$work/clone" rev-parse HEAD)
curl -s "http://127.0.0.1:$PORT/info" | grep -q "\"revision\":\"$revision" || problem="/info does not tell the revision"
podman healthcheck run "$container" || problem="HEALTHCHECK fails although /readyz answers 200"
if [ -z "$problem" ]; then
  CONTAINER_URL=http://127.0.0.1:$PORT "$bin/python" -m pytest -q tests/parity -k container ||
    problem="the container's answers differ from the checkout's"
fi
[ -n "$problem" ] || smoke "5 passed, 1 skipped"
if [ -z "$problem" ]; then
  echo "killing its worker"
  killed=$(worker)
  kill -9 "$killed"
  for _ in {1..60}; do
    ready && break
    sleep 1
  done
  ready && [ "$(worker)" != "$killed" ] || problem="a killed worker was not replaced within 60 s"
fi
stop
if [ -z "$problem" ]; then
  serve -e ALLOW_IMAGE_URLS=true -e IMAGE_URL_ALLOWED_HOSTS=127.0.0.1 -e "IMAGE_URL_ALLOWED_PORTS=$((PORT + 2))"
  [ -n "$problem" ] || smoke "6 passed"
  stop
fi

if [ -z "$problem" ]; then
  echo "baking weights in from a stand-in for a hub, and running the image without a network"
  weights=$work/clone/.data/weights/hf-hub-tests-shapes-openai/models--tests--shapes
  mkdir -p "$weights/refs" "$weights/snapshots/0000"
  echo -n 0000 >"$weights/refs/main"
  cp models/shapes/open_clip_* "$weights/snapshots/0000/"
  HF_HUB_OFFLINE=1 BAKE_WEIGHTS=1 MODEL_NAME=hf-hub:tests/shapes CONTAINERS_CONF=$work/build.conf \
    PATH=$bin:$PATH ENGINE=podman "$work/clone/deploy/oci/build.sh" "$image-baked" \
    --build-arg UV_NO_CACHE=false >>"$work/build.log" 2>&1 ||
    problem="baking the weights in failed: $(tail -n 1 "$work/build.log")"
fi
if [ -z "$problem" ]; then
  container=$(podman run -d --network=none --read-only --tmpfs /tmp -e BENTOML_HOME=/tmp/bentoml "$image-baked")
  for _ in {1..120}; do
    podman healthcheck run "$container" >"$work/health" 2>&1 && break
    sleep 1
  done
  said=$(podman exec "$container" python -c \
    'from urllib.request import urlopen; print(urlopen("http://127.0.0.1:8001/info").read().decode())') || true
  grep -q '"model_name":"hf-hub:tests/shapes"' <<<"$said" || problem="the baked weights are not served; /info: $said"
fi
if [ -n "$problem" ]; then
  podman logs --tail 30 "$container"
  echo "image-test: FAILED: $problem"
  exit 1
fi
echo "image-test: passed: the container answers like the checkout and exits with 0 on SIGTERM"
