"""Score restored images: python compute_metrices.py --help"""

from i2sb.cli.program import run_program
from i2sb.config import EvalConfig


def main(config: EvalConfig) -> None:
    from i2sb.evaluation.score import run

    run(config)


if __name__ == "__main__":
    run_program(EvalConfig, main)
