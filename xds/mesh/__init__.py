"""The neutral model derived from objects: services, endpoints, workloads, routing, policies, visibility."""
