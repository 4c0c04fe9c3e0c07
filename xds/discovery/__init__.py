"""The xDS protocol and server. It does not know what a VirtualService is."""
