"""Benchmarks. Each prints tables; with `--save` it writes a file in benchmarks/results."""
