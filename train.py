"""Train an Image-to-Image Schrödinger Bridge: python train.py --help"""

from i2sb.cli.commands import train

if __name__ == "__main__":
    train()
