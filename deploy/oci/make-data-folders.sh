#!/bin/sh
# Runs as root during the build of the image. A new named volume gets the owner of its mount point.
# Without these folders root would own it, and the service could not write to it.
set -eu
install -d -o bentoml -g bentoml /data/weights /data/thumbnails /data/qdrant
