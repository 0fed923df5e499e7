"""Request bodies for the service, and checks of its embeddings."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from tests.support.pictures import encoded, file_bytes, scene_image

PNG = encoded(file_bytes(scene_image(3)))
JSON = {"Content-Type": "application/json"}


def embedding(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.array(response.json()["embedding"])


def assert_same(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, atol=1e-5)
