"""Restore degraded images with a trained bridge: python sample.py --help"""

from i2sb.cli.program import run_program
from i2sb.config import SampleConfig


def main(config: SampleConfig) -> None:
    from i2sb.sampling.split import run

    run(config)


if __name__ == "__main__":
    run_program(SampleConfig, main)
