"""Vector stores: one interface, and an embedded and a server engine."""
