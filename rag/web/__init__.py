"""Search and index routes, thumbnails and the search page."""
