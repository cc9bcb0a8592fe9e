"""Exported weights on the Hugging Face Hub: fetched for who names them, as "hf:ORG/NAME", and put there.

It is huggingface_hub, an optional package, that speaks to the Hub: with the login that it keeps (`hf auth login`, or
HF_TOKEN), which is never a setting here, and through its cache of what was fetched before.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from i2sb.errors import FileError, UserError

SCHEME = "hf:"
WEIGHTS, CARD = "model.safetensors", "README.md"
_REQUIREMENTS = "pip install -r scripts/requirements-hub.txt"


class HubName(NamedTuple):
    """A repository of the Hub, "ORG/NAME", and the branch, tag or commit of it, "" for what its main branch holds."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(name: str | Path) -> bool:
    """Whether a name is that of weights on the Hub."""
    return str(name).startswith(SCHEME)


def parse_name(name: str) -> HubName:
    """Take "hf:ORG/NAME" or "hf:ORG/NAME@REVISION" apart. Raises UserError if it is neither."""
    part = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
    match = re.fullmatch(rf"{SCHEME}({part}/{part})(?:@([\w./-]+))?", name, re.ASCII)
    if match is None:
        raise UserError("", None, f"{name}: write hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    return HubName(match[1], match[2] or "")


def fetch_weights(name: str) -> Path:
    """Return the file of weights of a repository, in huggingface_hub's cache; fetched if it is not there yet.

    Without a net what was fetched before is taken. Raises UserError saying in a line what is wrong.
    """
    wanted, hub = parse_name(name), _import_hub(name)
    with _in_one_line(wanted):
        return Path(hub.hf_hub_download(wanted.repository, WEIGHTS, revision=wanted.revision or None))


def find_taken(name: HubName) -> list[str]:
    """Return which of the files that are pushed a repository holds already: none if there is no such repository.

    Raises UserError like `fetch_weights`.
    """
    hub = _import_hub(str(name))
    with _in_one_line(name):
        return [file for file in (WEIGHTS, CARD) if hub.file_exists(name.repository, file)]


def make_repository(name: HubName, *, private: bool) -> None:
    """Make a repository unless there is one. Raises UserError like `fetch_weights`."""
    hub = _import_hub(str(name))
    with _in_one_line(name):
        hub.create_repo(name.repository, private=private, exist_ok=True)


def push_files(name: HubName, files: Mapping[str, Path | bytes], message: str) -> str:
    """Add files to a repository in one commit, leaving all others as they are; returns the commit's address.

    Raises UserError like `fetch_weights`.
    """
    hub = _import_hub(str(name))
    with _in_one_line(name):
        added = [hub.CommitOperationAdd(path, content) for path, content in files.items()]
        return hub.create_commit(name.repository, added, commit_message=message).commit_url


def _import_hub(name: str) -> Any:
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
    except ImportError:
        raise UserError("", None, f"{name} is on the Hub, which needs huggingface_hub: {_REQUIREMENTS}") from None
    return hub


@contextmanager
def _in_one_line(name: HubName) -> Iterator[None]:
    """Make of whatever huggingface_hub, or the transport below it, raises the one line that the user needs."""
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        raise FileError(str(name), f"its owner asks for conditions to be accepted on its page; then {login}") from None
    except errors.RepositoryNotFoundError:
        raise FileError(str(name), f"there is no such repository, or it is private: then {login}") from None
    except errors.RevisionNotFoundError:
        raise FileError(str(name), "the repository has no such revision") from None
    except errors.LocalEntryNotFoundError:
        raise FileError(str(name), "the Hub cannot be reached, and nothing was fetched before") from None
    except errors.EntryNotFoundError:
        raise FileError(str(name), f"holds no {WEIGHTS}, so nothing that scripts/export.py pushed") from None
    except errors.LocalTokenNotFoundError:
        raise FileError(str(name), f"the Hub must know who you are: {login}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise FileError(str(name), f"you have no right to this ({status}): {login} as who has it") from None
        raise FileError(str(name), f"the Hub answers: {_shorten(error)}") from None
    except OSError as error:
        if error.filename is not None:
            raise  # the disk, which says so itself
        raise FileError(str(name), f"the Hub cannot be reached ({_shorten(error)})") from None
    except Exception as error:
        # The transport's own errors are no OSErrors, and which one it is depends on huggingface_hub's version.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise FileError(str(name), f"the Hub cannot be reached ({_shorten(error)})") from None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
