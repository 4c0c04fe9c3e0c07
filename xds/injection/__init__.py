"""How a workload gets its proxy: traffic capture, the sidecar in its pod, and the webhook that puts it there."""
