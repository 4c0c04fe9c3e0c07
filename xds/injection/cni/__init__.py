"""Capture by a chained CNI plugin: what a pod's init container does elsewhere is done by the node, and the pod needs no privilege.

The container runtime runs `xds-cni` (deploy/cni), which asks the node's agent (`agent`), which runs the same capture program in the
pod's network namespace. The agent also puts the plugin into the node's CNI configuration, and keeps it there (`chain`), and
replaces pods that were made before it was there (`repair`).
"""
