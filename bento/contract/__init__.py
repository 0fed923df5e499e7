"""The HTTP API as data: requests, answers, filters, errors, limits and routes."""
