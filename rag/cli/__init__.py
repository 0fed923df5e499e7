"""The `vision-rag` command."""
