"""The `xds` command; one file a subcommand."""
