"""Client of the vision encoder's HTTP API."""

from router_client.client import VisionEncoderClient
from router_client.errors import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderTimeout,
)
from router_client.settings import ClientSettings

__all__ = [
    "ClientSettings",
    "InvalidInput",
    "VisionEncoderBusy",
    "VisionEncoderClient",
    "VisionEncoderConnectionError",
    "VisionEncoderError",
    "VisionEncoderTimeout",
]
