"""Measurements that decisions rest on; each prints the table that the documents quote."""
