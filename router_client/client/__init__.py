"""The asyncio client and the blocking client of the service."""
