# The image with the weights of one model in it: `make image BAKE_WEIGHTS=1` builds this upon the
# other, from a folder that `python -m bento.fetch_weights` has filled.
ARG IMAGE
FROM ${IMAGE}
COPY . /opt/weights
# Under other names than the variables, whose values in the first image would go before them.
ARG NAME
ARG PRETRAINED
# Offline, since all that is needed is here: a start asks no hub for news. HF_HUB_CACHE goes before
# HF_HOME, which compose and Kubernetes set.
ENV HF_HUB_CACHE=/opt/weights HF_HUB_OFFLINE=1 \
    MODEL_NAME=${NAME} MODEL_PRETRAINED=${PRETRAINED}
