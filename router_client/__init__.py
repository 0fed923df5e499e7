"""Clients of the vision encoder's HTTP API; `router_client.router` serves agent routers."""

from bento.contract.errors import (
    InvalidInput,
    VisionEncoderBusy,
    VisionEncoderConnectionError,
    VisionEncoderError,
    VisionEncoderTimeout,
    VisionEncoderUnauthorized,
)
from router_client.client.blocking import VisionEncoderClient
from router_client.client.client import AsyncVisionEncoderClient
from router_client.client.settings import ClientSettings

__all__ = [
    "AsyncVisionEncoderClient",
    "ClientSettings",
    "InvalidInput",
    "VisionEncoderBusy",
    "VisionEncoderClient",
    "VisionEncoderConnectionError",
    "VisionEncoderError",
    "VisionEncoderTimeout",
    "VisionEncoderUnauthorized",
]
