"""What scripts/benchmark.py measures, a module each."""
