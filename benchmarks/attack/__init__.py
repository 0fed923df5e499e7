"""Attack the service, and measure what it costs others."""
