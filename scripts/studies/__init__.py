"""What scripts/study.py does, a module each: settings, the plan they make, its cells, how long it takes, the report."""
