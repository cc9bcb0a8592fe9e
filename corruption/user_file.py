"""Python files of the user's own: run only because the user named them."""

import importlib.util
import sys
from pathlib import Path

from corruption.base import CorruptionError


def load_from_file(setting: str, name: str) -> object:
    """Run a user's file, named as path/to/file.py:name, and return what it holds under that name, None if nothing.

    Raises CorruptionError with the setting that named it if there is no such file, or if running it fails.
    """
    path, _, wanted = name.rpartition(":")
    if not Path(path).is_file():
        raise CorruptionError(setting, name, f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"{setting}_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # every file has a loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise CorruptionError(setting, name, f"running {path} failed: {type(error).__name__}: {error}") from error
    return getattr(module, wanted, None)
