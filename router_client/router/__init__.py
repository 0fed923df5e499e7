"""Rules, providers and intents for agent routers, and the reference router."""
