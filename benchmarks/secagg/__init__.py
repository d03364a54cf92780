"""A round of secure aggregation beside Flower's SecAgg+: `python -m benchmarks.secagg`."""
