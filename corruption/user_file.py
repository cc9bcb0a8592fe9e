"""Python files of the user's own: run only because the user named them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def load_from_file(name: str, flag: str) -> object:
    """Run a user's file, named as path/to/file.py:name, and return what it holds under that name, None if nothing.

    Raises ValueError with the flag that it was given to if there is no such file, or if running it fails.
    """
    path, _, wanted = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{flag} {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"{flag.lstrip('-')}_{Path(path).stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code: anything can come out of it
        raise ValueError(f"{flag} {name}: running {path} failed: {type(error).__name__}: {error}") from error
    return getattr(module, wanted, None)
