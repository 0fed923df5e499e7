"""Handlers of the embedding and state routes: from a request to its answer."""
