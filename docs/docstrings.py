"""For the site: docstrings in Markdown (an extension of griffe, which mkdocs.yml names)."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Makes a list of what is said of arguments, one a line, and code of examples."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Write `name: what it is` lines as items of a list, and `>>>` examples as code.

    >>> to_markdown("Do it.\\nx: what.")
    'Do it.\\n\\n- `x`: what.'
    """
    lines: list[str] = []
    in_code = in_item = False
    for line in text.splitlines():
        begins_item = re.fullmatch(r"(\w+(?:, \w+)*): (.+)", line)
        if line.startswith(">>>") and not in_code:
            lines += ["", "```pycon"]
            in_code = True
        elif in_code and not line:
            lines += ["```", ""]
            in_code = False
        elif not in_code and begins_item:
            lines += [""] if lines and lines[-1] and not in_item else []
            line, in_item = f"- `{begins_item[1]}`: {begins_item[2]}", True
        elif in_item and re.match(r"Raises |Returns ", line):
            lines += [""]
            in_item = False
        elif not line:
            in_item = False
        lines.append(line)
    return "\n".join([*lines, "```"] if in_code else lines)
