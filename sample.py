"""Restore degraded images with a trained bridge: python sample.py --help"""

from i2sb.config import SampleConfig
from i2sb.program import run_program


def main(config: SampleConfig) -> None:
    from i2sb.sampling import run

    run(config)


if __name__ == "__main__":
    run_program(SampleConfig, main)
