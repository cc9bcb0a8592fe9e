"""Train an Image-to-Image Schrödinger Bridge: python train.py --help"""

from i2sb.cli.program import run_program
from i2sb.config import TrainConfig


def main(config: TrainConfig) -> None:
    from i2sb.training.loop import train

    train(config)


if __name__ == "__main__":
    run_program(TrainConfig, main)
