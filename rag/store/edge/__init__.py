"""The embedded store, on Qdrant's edge engine."""
