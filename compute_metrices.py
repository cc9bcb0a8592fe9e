"""Score restored images: python compute_metrices.py --help"""

from i2sb.cli.commands import score

if __name__ == "__main__":
    score()
