"""Where objects come from: a directory of YAML files, or a Kubernetes API server. Both yield the same changes."""
