"""Score restored images: python compute_metrices.py --help"""

from i2sb.config import EvalConfig
from i2sb.program import run_program


def main(config: EvalConfig) -> None:
    from i2sb.evaluation import run

    run(config)


if __name__ == "__main__":
    run_program(EvalConfig, main)
