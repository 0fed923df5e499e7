"""Start-up, workers and graceful shutdown of the processes that `bentoml serve` runs."""
