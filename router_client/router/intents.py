"""Image search in one call, for the code of an agent. Neither function raises."""

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
    """Find the images of the tenant `dao_id` that match a query in Ukrainian or English.

    Returns `{success, count, images: [{id, score, path, metadata}], formatted_text}`, best image
    first. On failure `success` is false, `formatted_text` explains it to the user, and `error` has
    the message for developers. The service is at VISION_ENCODER_URL; it has defaults for `top_k`
    and the collection.
    """
    return await _search(user_query, dao_id, top_k=top_k, collection=collection_name)


async def handle_image_to_image_search(
    image_path: str | os.PathLike[str],
    dao_id: str,
    top_k: int | None = None,
    collection_name: str | None = None,
) -> dict[str, Any]:
    """Find the images of the tenant `dao_id` that resemble the image file at `image_path`.

    Returns the same as `handle_image_search_intent`.
    """
    path = str(image_path)
    return await _search(None, dao_id, image_path=path, top_k=top_k, collection=collection_name)


async def _search(message: str | None, dao_id: str, **payload: Any) -> dict[str, Any]:
    try:
        request = RouterRequest(
            mode="image_search", dao_id=dao_id, message=message, payload=payload
        )
        provider = VisionRagProvider("vision_rag")
    except (ValidationError, VisionEncoderError) as error:  # invalid arguments or settings
        problem = describe(error) if isinstance(error, ValidationError) else str(error)
        return {**search_failed(problem, language_of(str(message or ""))), "error": problem}
    try:
        response = await provider.call(request)
    finally:
        await provider.close()
    data = response.data or {}
    return data if response.ok else {**data, "error": response.error}
