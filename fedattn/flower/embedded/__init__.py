"""The embedded engine: this process's grid, and the worker processes that answer for clients."""
