"""The only users of flwr: the wire, the embedded grid, the apps and their rounds."""
