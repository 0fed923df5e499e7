# Adds the weights of a model to the image. `make image BAKE_WEIGHTS=1` builds it from a folder that
# `python -m bento.fetch_weights` has filled.
ARG IMAGE
FROM ${IMAGE}
COPY . /opt/weights
# Not named as the variables, because the values of the base image's ENV would override them.
ARG NAME
ARG PRETRAINED
# Everything is in the image, so never ask the hub for updates. HF_HUB_CACHE takes precedence over
# HF_HOME, which Compose and Kubernetes set.
ENV HF_HUB_CACHE=/opt/weights HF_HUB_OFFLINE=1 \
    MODEL_NAME=${NAME} MODEL_PRETRAINED=${PRETRAINED}
