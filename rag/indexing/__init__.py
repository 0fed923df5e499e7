"""Index files, find near duplicates, and re-index a collection with another model."""
