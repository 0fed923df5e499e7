"""The route table: every route of the service, as data.

`/docs`, `docs/api.md`, the service, the middleware and the tests read it. To add a route, describe
it here and bind its handler. `service.py` binds a POST route with a JSON body to a method of
`VisionEncoder`. Every other route needs a handler in the mounted app.
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
from bento.contract.limits import (
    MAX_BATCH_VALUES,
    MAX_LISTED,
    MAX_METADATA_BYTES,
    MAX_PLACES,
    MAX_SEARCH_VALUES,
    MAX_TEXT,
)
from bento.contract.openai import OpenAIEmbeddingsRequest, OpenAIEmbeddingsResponse
from bento.contract.route import Parameter, Route
from bento.contract.search import (
    ManySearchesRequest,
    ManySearchesResponse,
    SearchRequest,
    SearchResponse,
    SearchUploadForm,
)

_ID: Final = Parameter("id", "Your id for the picture.", "path", example="42")
_NAME: Final = Parameter("name", "The name of the collection.", "path", example="daarion_images")
_DAO_ID: Final = Parameter("dao_id", "The tenant that owns the picture; default: `default`.")
_COLLECTION: Final = Parameter("collection", "The collection; default: IMAGE_SEARCH_COLLECTION.")
_NPY: Final = "With `Accept: application/x-npy` the answer is a .npy file, float32 of shape"
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
        bytes=12 * MAX_TEXT + 1000,  # a character can take 12 bytes, as in \\ud83d\\ude00
        example={"text": "a red circle"},
        more=f"{_NPY} `(dimension,)`.",
        client="embed_text",
    ),
    Route(
        "embed_texts",
        "POST",
        "/embed/texts",
        "Embed several texts.",
        EmbeddingsResponse,
        body=TextsRequest,
        item_values=1,
        example={"texts": ["a red circle", "a blue square"]},
        more=f"{_NPY} `(n, dimension)`.",
        client="embed_texts",
    ),
    Route(
        "embed_image",
        "POST",
        "/embed/image",
        "Embed an image, given in base64 or as a URL.",
        EmbeddingResponse,
        body=ImageRequest,
        example={"image_base64": _PIXEL},
        more=f"{_NPY} `(dimension,)`.",
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
        "Embed several uploaded images.",
        ImagesResponse,
        form=UploadsForm,
        example={"files": "@cat.jpg"},
        more="`errors` lists the images that the service could not embed. "
        f"{_NPY} `(n, dimension)`, with NaN in the rows of those images.",
        client="embed_images",
    ),
    Route(
        "openai_embeddings",
        "POST",
        "/v1/embeddings",
        "Embed texts and images with OpenAI's API.",
        OpenAIEmbeddingsResponse,
        body=OpenAIEmbeddingsRequest,
        item_values=10,
        example={"model": "ViT-L-14", "input": ["a red circle"]},
        more="Errors have OpenAI's shape, `{error: {message, type, param, code}}`.",
    ),
    Route(
        "rank",
        "POST",
        "/rank",
        "Rank texts by how well they describe an image.",
        RankResponse,
        body=RankRequest,
        item_values=1,
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
        values=MAX_SEARCH_VALUES,
        example={"text": "a red circle", "top_k": 3},
        more="The query is the weighted sum of the texts and images, minus `negative`. If search "
        "is unavailable, `success` is false and `error` says why.",
        client="search",
    ),
    Route(
        "search_upload",
        "POST",
        "/search/upload",
        "Find pictures that are similar to an uploaded one.",
        SearchResponse,
        form=SearchUploadForm,
        example={"file": "@cat.jpg", "search": '{"top_k": 3}'},
    ),
    Route(
        "search_many",
        "POST",
        "/search/batch",
        "Run several searches in one call.",
        ManySearchesResponse,
        body=ManySearchesRequest,
        values=MAX_BATCH_VALUES,
        example={"searches": [{"text": "a red circle"}, {"text": "a blue square"}]},
        more="If one search fails, the others are still answered.",
        client="search_many",
    ),
    Route(
        "index_image",
        "POST",
        "/images",
        "Index a picture with its metadata, or replace the picture with the same id.",
        IndexResponse,
        body=IndexRequest,
        values=MAX_PLACES + MAX_METADATA_BYTES // 2,
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
        values=MAX_PLACES + MAX_METADATA_BYTES // 2,
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
            Parameter("staged", "Whether to delete from the staged version.", type="boolean"),
        ),
        client="delete_image",
    ),
    Route(
        "thumbnail",
        "GET",
        "/images/{id}/thumbnail",
        "Get a preview of at most 384 x 384 pixels.",
        "image/jpeg",
        parameters=(_ID, _DAO_ID, _COLLECTION),
    ),
    Route(
        "stats",
        "GET",
        "/collections/{name}",
        "Count the pictures in each version of a collection.",
        StatsResponse,
        parameters=(_NAME,),
        client="stats",
    ),
    Route(
        "list_images",
        "GET",
        "/collections/{name}/images",
        "List the pictures of a collection, page by page.",
        ListResponse,
        parameters=(
            _NAME,
            Parameter("dao_id", "List only the pictures of this tenant."),
            Parameter(
                "limit",
                f"The number of pictures on a page, 1 to {MAX_LISTED}.",
                type="integer",
                maximum=MAX_LISTED,
            ),
            Parameter("start", "`next` of the previous page."),
            Parameter("generation", "The version; default: the published one."),
        ),
        client="images",
    ),
    Route(
        "publish",
        "POST",
        "/collections/{name}/publish",
        "Publish the version for this service's model.",
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
            Parameter(
                "generation", "The version, 8 hexadecimal digits.", "path", example="0a1b2c3d"
            ),
        ),
        client="drop",
    ),
)
_SERVICE: Final = (
    Route(
        "health",
        "GET",
        "/health",
        "Check that the device computes; 503 if it does not answer.",
        HealthResponse,
        client="health",
    ),
    Route(
        "info",
        "GET",
        "/info",
        "Get the model and the limits of the service.",
        InfoResponse,
        client="info",
    ),
    Route("home", "GET", "/", "Redirect to the search page.", ""),
    Route("page", "GET", "/ui", "Open the search page.", "text/html"),
    Route(
        "page_file",
        "GET",
        "/ui/{name}",
        "Get a script or style sheet of the search page.",
        "text/javascript",
        parameters=(Parameter("name", "The name of the file.", "path", example="app.js"),),
    ),
    Route("docs", "GET", "/docs", "Open the API documentation in a browser.", "text/html"),
    Route("docs_script", "GET", "/docs/start.js", "Get the script of `/docs`.", "text/javascript"),
    Route(
        "openapi",
        "GET",
        "/openapi.json",
        "Get the OpenAPI document of this API.",
        "application/json",
    ),
    Route("metrics", "GET", "/metrics", "Get metrics for Prometheus.", "text/plain"),
    Route("livez", "GET", "/livez", "Check that the process is alive.", "text/plain"),
    Route(
        "readyz",
        "GET",
        "/readyz",
        "Check that the model is loaded and its runners are alive.",
        "text/plain",
    ),
    Route("healthz", "GET", "/healthz", "Check the same as `/livez`.", "text/plain"),
)

GROUPS: Final = {"Embedding": _EMBEDDING, "Search": _SEARCH, "Service": _SERVICE}
ROUTES: Final[tuple[Route, ...]] = (*_EMBEDDING, *_SEARCH, *_SERVICE)

BENTOML: Final = frozenset({"livez", "readyz", "healthz"})
"""Names of the routes that BentoML answers itself."""


def route(name: str) -> Route:
    """Return the route with this name. Raises `KeyError`."""
    return _BY_NAME[name]


_BY_NAME: Final = {each.name: each for each in ROUTES}
