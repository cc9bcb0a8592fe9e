"""For the site: equations as MathML, which browsers draw by themselves (a hook that mkdocs.yml names)."""

import re
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Turn blocks of code in the language `math` into equations.

    >>> page = on_page_markdown("So:\\n\\n```math\\nx_0\\n```\\n")
    >>> "```" in page, "<msub><mi>x</mi><mn>0</mn></msub>" in page
    (False, True)
    """
    return re.sub(r"^```math\n(.*?)^```$", _to_mathml, markdown, flags=re.DOTALL | re.MULTILINE)


def _to_mathml(block: re.Match[str]) -> str:
    return f'<div style="overflow-x: auto">{convert(block[1].strip(), display="block")}</div>'
