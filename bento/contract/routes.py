"""Every route of the service, as data: what `/docs`, `docs/api.md`, the service, the middleware
and the tests know of a route, they read here. Handlers are bound in `service.py`.

To add a route, describe it here and bind its handler: a method of `VisionEncoder` when it takes
JSON by POST, otherwise a handler of the mounted app.
"""

from __future__ import annotations

from typing import Final

from bento.contract.embedding import (
    EmbeddingResponse,
    EmbeddingsResponse,
    HealthResponse,
    ImageRequest,
    ImagesResponse,
    InfoResponse,
    RankRequest,
    RankResponse,
    TextRequest,
    TextsRequest,
    UploadForm,
    UploadsForm,
)
from bento.contract.images import (
    DeleteResponse,
    DropResponse,
    IndexRequest,
    IndexResponse,
    ListResponse,
    PublishResponse,
    StatsResponse,
    UpdateRequest,
    UpdateResponse,
)
from bento.contract.limits import MAX_LISTED
from bento.contract.openai import OpenAIEmbeddingsRequest, OpenAIEmbeddingsResponse
from bento.contract.route import Parameter, Route
from bento.contract.search import (
    ManySearchesRequest,
    ManySearchesResponse,
    SearchRequest,
    SearchResponse,
    SearchUploadForm,
)

_ID: Final = Parameter("id", "Your name for the picture.", "path", example="42")
_NAME: Final = Parameter("name", "The collection.", "path", example="daarion_images")
_DAO_ID: Final = Parameter("dao_id", "The tenant that the picture belongs to (`default`).")
_COLLECTION: Final = Parameter("collection", "Other than IMAGE_SEARCH_COLLECTION.")
_NPY: Final = "With `Accept: application/x-npy` the answer is a .npy file, float32"
_PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

_EMBEDDING: Final = (
    Route(
        "embed_text",
        "POST",
        "/embed/text",
        "Embed a text.",
        EmbeddingResponse,
        body=TextRequest,
        example={"text": "a red circle"},
        more=f"{_NPY} `(dimension,)`.",
        client="embed_text",
    ),
    Route(
        "embed_texts",
        "POST",
        "/embed/texts",
        "Embed many texts.",
        EmbeddingsResponse,
        body=TextsRequest,
        example={"texts": ["a red circle", "a blue square"]},
        more=f"{_NPY} `(n, dimension)`. At most `max_request_items` texts (see `/info`).",
        client="embed_texts",
    ),
    Route(
        "embed_image",
        "POST",
        "/embed/image",
        "Embed an image, given as base64 or by its URL.",
        EmbeddingResponse,
        body=ImageRequest,
        example={"image_base64": _PIXEL},
        more=f"{_NPY} `(dimension,)`. URLs are fetched only with ALLOW_IMAGE_URLS=true.",
        client="embed_image_url",
    ),
    Route(
        "embed_image_upload",
        "POST",
        "/embed/image/upload",
        "Embed an uploaded image.",
        EmbeddingResponse,
        form=UploadForm,
        example={"file": "@cat.jpg"},
        more=f"{_NPY} `(dimension,)`.",
        client="embed_image_bytes",
    ),
    Route(
        "embed_images",
        "POST",
        "/embed/images",
        "Embed many uploaded images.",
        ImagesResponse,
        form=UploadsForm,
        example={"files": "@cat.jpg"},
        more=f"{_NPY} `(n, dimension)`; the row of a bad image is NaN.",
        client="embed_images",
    ),
    Route(
        "openai_embeddings",
        "POST",
        "/v1/embeddings",
        "Embed texts and images as OpenAI's API does.",
        OpenAIEmbeddingsResponse,
        body=OpenAIEmbeddingsRequest,
        example={"model": "ViT-L-14", "input": ["a red circle"]},
        more="Errors have OpenAI's shape, `{error: {message, type, param, code}}`.",
    ),
    Route(
        "rank",
        "POST",
        "/rank",
        "Say which of several texts describes an image best.",
        RankResponse,
        body=RankRequest,
        example={"image": {"image_base64": _PIXEL}, "texts": ["a photo of a cat", "a red dot"]},
        client="rank",
    ),
)
_SEARCH: Final = (
    Route(
        "search",
        "POST",
        "/search",
        "Find pictures by texts, images or both, best first.",
        SearchResponse,
        body=SearchRequest,
        example={"text": "a red circle", "top_k": 3},
        more="Texts and images add up to one query; `negative` is subtracted from it. When search "
        "is unavailable, `success` is false and `error` says why.",
        client="search",
    ),
    Route(
        "search_upload",
        "POST",
        "/search/upload",
        "Find pictures by an uploaded one.",
        SearchResponse,
        form=SearchUploadForm,
        example={"file": "@cat.jpg", "search": '{"top_k": 3}'},
    ),
    Route(
        "search_many",
        "POST",
        "/search/batch",
        "Make many searches in one call, each answered for itself.",
        ManySearchesResponse,
        body=ManySearchesRequest,
        example={"searches": [{"text": "a red circle"}, {"text": "a blue square"}]},
        client="search_many",
    ),
    Route(
        "index_image",
        "POST",
        "/images",
        "Index a picture with its metadata, replacing what its id held.",
        IndexResponse,
        body=IndexRequest,
        example={"id": "42", "image_base64": _PIXEL, "metadata": {"title": "A dot"}},
        client="index_image",
    ),
    Route(
        "update_image",
        "PATCH",
        "/images/{id}",
        "Replace the paths or the metadata of a picture.",
        UpdateResponse,
        body=UpdateRequest,
        parameters=(_ID, _DAO_ID, _COLLECTION),
        example={"metadata": {"title": "A red dot"}},
        client="update_image",
    ),
    Route(
        "delete_image",
        "DELETE",
        "/images/{id}",
        "Delete a picture from the index.",
        DeleteResponse,
        parameters=(
            _ID,
            _DAO_ID,
            _COLLECTION,
            Parameter("staged", "true: from the staged version.", type="boolean"),
        ),
        client="delete_image",
    ),
    Route(
        "thumbnail",
        "GET",
        "/images/{id}/thumbnail",
        "A preview of at most 384 x 384 pixels.",
        "image/jpeg",
        parameters=(_ID, _DAO_ID, _COLLECTION),
    ),
    Route(
        "stats",
        "GET",
        "/collections/{name}",
        "What a collection holds.",
        StatsResponse,
        parameters=(_NAME,),
        client="stats",
    ),
    Route(
        "list_images",
        "GET",
        "/collections/{name}/images",
        "List pictures, page by page.",
        ListResponse,
        parameters=(
            _NAME,
            _DAO_ID,
            Parameter("limit", f"1 to {MAX_LISTED}.", type="integer", maximum=MAX_LISTED),
            Parameter("start", "`next` of the page before."),
            Parameter("generation", "Another version than the published one."),
        ),
        client="images",
    ),
    Route(
        "publish",
        "POST",
        "/collections/{name}/publish",
        "Publish the version of this service's model.",
        PublishResponse,
        parameters=(_NAME,),
        client="publish",
    ),
    Route(
        "drop",
        "DELETE",
        "/collections/{name}/generations/{generation}",
        "Delete a version that is not published.",
        DropResponse,
        parameters=(
            _NAME,
            Parameter("generation", "8 hexadecimal digits.", "path", example="0a1b2c3d"),
        ),
        client="drop",
    ),
)
_SERVICE: Final = (
    Route(
        "health",
        "GET",
        "/health",
        "Whether the device answers; 503 when it does not.",
        HealthResponse,
        client="health",
    ),
    Route("info", "GET", "/info", "The model and the limits.", InfoResponse, client="info"),
    Route("home", "GET", "/", "Redirects to the search page.", ""),
    Route("page", "GET", "/ui", "The search page.", "text/html"),
    Route(
        "page_file",
        "GET",
        "/ui/{name}",
        "A script or style of the search page.",
        "text/javascript",
        parameters=(Parameter("name", "The file.", "path", example="app.js"),),
    ),
    Route("docs", "GET", "/docs", "All of this in the browser.", "text/html"),
    Route("docs_script", "GET", "/docs/start.js", "Starts /docs.", "text/javascript"),
    Route("openapi", "GET", "/openapi.json", "This API in OpenAPI.", "application/json"),
    Route("metrics", "GET", "/metrics", "Metrics for Prometheus.", "text/plain"),
    Route("livez", "GET", "/livez", "Whether the process lives.", "text/plain"),
    Route("readyz", "GET", "/readyz", "Whether the model is loaded.", "text/plain"),
    Route("healthz", "GET", "/healthz", "The same as /livez.", "text/plain"),
)

GROUPS: Final = {"Embedding": _EMBEDDING, "Search": _SEARCH, "Service": _SERVICE}
ROUTES: Final[tuple[Route, ...]] = (*_EMBEDDING, *_SEARCH, *_SERVICE)

BENTOML: Final = frozenset({"livez", "readyz", "healthz"})
"""Names of the routes that BentoML itself answers."""


def route(name: str) -> Route:
    """Return the route of a name. Raises `KeyError`."""
    return _BY_NAME[name]


_BY_NAME: Final = {each.name: each for each in ROUTES}
