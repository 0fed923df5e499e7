"""Fixed limits of the API. Limits that an operator can change are in the settings."""

from __future__ import annotations

from typing import Final

MAX_TEXT: Final = 10_000  # characters of a text
MAX_URL: Final = 2048  # characters
MAX_ID: Final = 1024  # characters of a picture's id
MAX_TENANT: Final = 256  # characters of a `dao_id`
MAX_PATH: Final = 4096  # characters
MAX_PLACES: Final = 10_000  # paths of one picture
MAX_METADATA_BYTES: Final = 65_536  # of one picture, as JSON
MAX_PAYLOAD_BYTES: Final = 1_000_000  # of one picture, with its paths
MAX_TOP_K: Final = 1000  # hits on one page
MAX_DEPTH: Final = 10_000  # hits on all pages of a search
MAX_EXAMPLES: Final = 20  # texts and images of one search
MAX_SEARCHES: Final = 100  # searches in one `/search/batch` request
MAX_PAGE_BYTES: Final = 8_000_000  # payloads on one page, and of all searches of a batch
MAX_LISTED: Final = 1000  # pictures on one page of a listing

# Limits of a filter.
MAX_CONDITIONS: Final = 100  # conditions, including nested ones
MAX_VALUES: Final = 1000  # values of one `any` or `except`
MAX_FILTER_VALUES: Final = 5000  # values of all `any` and `except`
MAX_NESTING: Final = 10  # levels of nested filters; Qdrant's gRPC API accepts about 50

# Limits of the values in a JSON body, checked before it is parsed.
MAX_SEARCH_VALUES: Final = 10_000  # a filter, and the examples
MAX_BATCH_VALUES: Final = 100_000  # all searches of a batch
