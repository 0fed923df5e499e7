"""Image search for an agent's own code: one call each, never an exception."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ValidationError

from bento.contract.errors import VisionEncoderError, describe
from router_client.router.providers import VisionRagProvider, language_of, search_failed
from router_client.router.rules import RouterRequest


async def handle_image_search_intent(
    user_query: str,
    dao_id: str,
    top_k: int | None = None,
    collection_name: str | None = None,
) -> dict[str, Any]:
    """Find pictures of a tenant by what the user wrote, in Ukrainian or English.

    Returns `{success, count, images: [{id, score, path, metadata}], formatted_text}`; where it
    failed `success` is false, `formatted_text` says why to the user and `error` to you. The service
    is the one at VISION_ENCODER_URL; `top_k` and the collection are its own unless given.
    """
    return await _search(user_query, dao_id, top_k=top_k, collection=collection_name)


async def handle_image_to_image_search(
    image_path: str | os.PathLike[str],
    dao_id: str,
    top_k: int | None = None,
    collection_name: str | None = None,
) -> dict[str, Any]:
    """Find pictures of a tenant like the picture file at `image_path`.

    Returns what `handle_image_search_intent` does.
    """
    path = str(image_path)
    return await _search(None, dao_id, image_path=path, top_k=top_k, collection=collection_name)


async def _search(message: str | None, dao_id: str, **payload: Any) -> dict[str, Any]:
    try:
        request = RouterRequest(
            mode="image_search", dao_id=dao_id, message=message, payload=payload
        )
        provider = VisionRagProvider("vision_rag")
    except (ValidationError, VisionEncoderError) as error:  # an argument, or a variable
        problem = describe(error) if isinstance(error, ValidationError) else str(error)
        return {**search_failed(problem, language_of(str(message or ""))), "error": problem}
    try:
        response = await provider.call(request)
    finally:
        await provider.close()
    data = response.data or {}
    return data if response.ok else {**data, "error": response.error}
