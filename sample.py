"""Restore degraded images with a trained bridge: python sample.py --help"""

from i2sb.cli.commands import sample

if __name__ == "__main__":
    sample()
