"""From the mesh model to Envoy's resources. Pure functions: no I/O, no clock."""
