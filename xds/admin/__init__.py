"""The HTTP side: metrics, health, debug."""
