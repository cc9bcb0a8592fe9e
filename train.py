"""Train an Image-to-Image Schrödinger Bridge: python train.py --help"""

from i2sb.config import TrainConfig
from i2sb.program import run_program


def main(config: TrainConfig) -> None:
    from i2sb.training import train

    train(config)


if __name__ == "__main__":
    run_program(TrainConfig, main)
