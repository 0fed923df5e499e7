"""Connections and headers: what HTTP needs below the routes."""
