"""/health names the GPU that the model is on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from bento import Encoder, Settings
from bento.handlers.state import StateHandler

pytestmark = pytest.mark.service


class Runners:
    async def check(self) -> None:
        pass


@pytest.mark.parametrize(
    ("device", "name"), [("cuda", "the GPU cuda"), ("cuda:1", "the GPU cuda:1"), ("cpu", None)]
)
def test_health_names_the_gpu_in_use(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, device: str, name: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"the GPU {device}")
    monkeypatch.setattr(encoder, "device", device)
    runners: Any = Runners()
    health = asyncio.run(StateHandler(encoder, runners, Settings(), collection=None).health())
    assert (health.device, health.gpu_name, health.cuda_available) == (device, name, True)
