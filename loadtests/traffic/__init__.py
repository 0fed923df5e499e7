"""The requests of the load tests, and the answers that are correct."""
