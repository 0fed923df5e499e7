"""The HTTP side of the service: middleware, access, forms, responses, API pages, metrics, logs."""
