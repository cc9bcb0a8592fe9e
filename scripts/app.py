"""Restore pictures in the browser: python scripts/app.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.commands import app

if __name__ == "__main__":
    app()
