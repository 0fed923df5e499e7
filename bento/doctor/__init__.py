"""Checks whether this machine can run the service (`make gpu-check`)."""
