"""What tests share besides fixtures, which are in conftest.py."""
