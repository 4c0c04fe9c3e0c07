"""`xds demo`: a mesh of real Envoys on loopback addresses, in one process tree, without root and without a cluster."""
