"""For the site: formulas in TeX become MathML when it is built, so that no page needs a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what `pymdownx.arithmatex` found on a page; mkdocs calls this by its name."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    tex = html.unescape(found["tex"]).strip()
    display = "block" if found["tag"] == "div" else "inline"
    made = convert(tex, display=display)
    if "\\" in html.unescape(made):  # a command that it does not know is kept as text
        raise ValueError(f"docs: a command of the formula {tex!r} is unknown to latex2mathml")
    made = re.sub(r"<mo>([A-Za-z]{2,})</mo>", r"<mi>\1</mi>", made)  # a name, not a relation
    return re.sub(r"(<mi>[A-Za-z]{2,}</mi>)(?=<m(i|sub)>)", r'\1<mspace width="0.167em" />', made)
