"""Pictures in a collection: identity, payloads and the index."""
