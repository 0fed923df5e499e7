#!/bin/sh
# Runs as root while the image is built. A new named volume takes the owner of the folder that it
# is mounted on; without these folders it would be root's, and the service could not write.
set -eu
install -d -o bentoml -g bentoml /data/weights /data/thumbnails /data/qdrant
