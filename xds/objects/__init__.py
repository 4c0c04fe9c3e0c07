"""Kubernetes and Istio objects as typed structs: decoding, validation, defaulting."""
