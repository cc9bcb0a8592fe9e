"""The command line: what the three programs share."""
