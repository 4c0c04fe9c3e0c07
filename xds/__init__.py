"""A mesh control plane for stock Envoy."""
