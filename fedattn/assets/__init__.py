"""Files that travel with the wheel: the public checkpoint, its card, the report template."""
