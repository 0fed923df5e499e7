"""Answer `/health` and `/info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bento.contract.embedding import HealthResponse, InfoResponse
from bento.encoder.images import FORMATS
from bento.runners.languages import languages_of
from bento.version import VERSION, revision

if TYPE_CHECKING:
    from bento.encoder.model import Encoder
    from bento.runners.runners import Runners
    from bento.settings import Settings


class StateHandler:
    """Answers `/health` and `/info`. `collection` is None if search is off."""

    def __init__(
        self,
        encoder: Encoder,
        runners: Runners,
        settings: Settings,
        *,
        collection: str | None,
    ) -> None:
        self._encoder = encoder
        self._runners = runners
        self.info = InfoResponse(
            model_name=encoder.model_name,
            pretrained=encoder.pretrained,
            device=encoder.device,
            dtypes=encoder.dtypes,
            embedding_dim=encoder.embedding_dim,
            context_length=encoder.context_length,
            languages=languages_of(encoder.model_name, encoder.pretrained),
            preprocess=encoder.preprocess_description,
            weights_digest=encoder.weights_digest,
            normalize_default=settings.normalize_embeddings,
            image_formats=list(FORMATS),
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_request_bytes=settings.max_request_bytes,
            max_request_items=settings.max_request_items,
            image_urls=settings.allow_image_urls,
            qdrant_enabled=collection is not None,
            collection=collection,
            version=VERSION,
            revision=revision(),
        )

    @property
    def summary(self) -> dict[str, Any]:
        """Fields of the log line that the service writes at its start."""
        encoder = self._encoder
        return {
            "model": encoder.model,
            "device": encoder.device,
            **encoder.dtypes,
            "dimension": encoder.embedding_dim,
        }

    async def health(self) -> HealthResponse:
        """Check the device and return its state. Raises `NotReady` if it does not answer."""
        import torch

        await self._runners.check()
        device = self._encoder.device
        return HealthResponse(
            status="healthy",
            device=device,
            model=self._encoder.model,
            cuda_available=torch.cuda.is_available(),
            gpu_name=torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        )
