"""The report: what each claim says, its pictures, its numbers, and what held.

A table cell names a number of results.json by its path, so that nothing can be quoted that is not
in there; the page keeps that path in a `data` element.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.common import plain, write_text

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #22262b; --soft: #5c646d;
  --line: #d9dbda; --card: #f1f1ed; --good: #00724f; --half: #8a5a00; --bad: #a33c00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e4e4e0; --soft: #a2a9b1;
  --line: #383d43; --card: #1f2226; --good: #4cc9a0; --half: #e6b04a; --bad: #f08a52; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { line-height: 1.2; } h2 { margin: 3rem 0 .3rem; border-top: 1px solid var(--line);
  padding-top: 1.6rem; line-height: 1.25; }
p { max-width: 46rem; } .claim { color: var(--soft); font-style: italic; margin-top: 0; }
.verdict { background: var(--card); border-left: 4px solid var(--soft); padding: .6rem .9rem; }
.verdict b { text-transform: uppercase; letter-spacing: .04em; font-size: .85em; }
.holds { border-color: var(--good); } .holds b { color: var(--good); }
.holds-in-part { border-color: var(--half); } .holds-in-part b { color: var(--half); }
.does-not-hold { border-color: var(--bad); } .does-not-hold b { color: var(--bad); }
figure { margin: 1.4rem 0; } figcaption { color: var(--soft); font-size: .92rem; max-width: 46rem; }
img { max-width: 100%; height: auto; border-radius: 4px; display: block; margin-bottom: .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; }
code { background: var(--card); padding: 0 .25em; border-radius: 3px; }
"""


def section(
    *,
    title: str,
    claim: str,
    verdict: tuple[str, str],
    numbers: Mapping[str, Any],
    pictures: Sequence[tuple[str, str]],
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Put together what an experiment found.

    Args:
        title: Heading.
        claim: The claim, as the slides make it.
        verdict: Outcome ("holds", "holds in part", "does not hold") and a sentence with numbers.
        numbers: Nested dictionary of what was measured.
        pictures: File names and captions.
        columns: Header of the table, the first for the row labels.
        rows: Each a label and the dotted paths of its numbers; an empty path leaves a gap.

    Returns:
        A dictionary; everything but `table` belongs in results.json.
    """
    return {
        "title": title,
        "claim": claim,
        "outcome": verdict[0],
        "verdict": verdict[1],
        "numbers": plain(numbers),
        "pictures": [{"file": file, "caption": text} for file, text in pictures],
        "table": {"columns": list(columns), "rows": [list(row) for row in rows]},
    }


def look_up(numbers: Mapping[str, Any], path: str) -> Any:
    """Return the number at a dotted path, e.g. `exact.residual.median`."""
    found: Any = numbers
    for name in path.split("."):
        found = found[name]
    return found


def write_report(
    folder: Path, title: str, intro: Sequence[str], sections: Mapping[str, Any]
) -> None:
    """Write report.html and report.md into a folder that holds the pictures.

    Args:
        folder: The output folder.
        title: Heading of the page.
        intro: Paragraphs before the first section.
        sections: Name of each claim, and what `section` gave.
    """
    write_text(folder / "report.html", _html(title, intro, sections))
    write_text(folder / "report.md", _markdown(title, intro, sections))


def _html(title: str, intro: Sequence[str], sections: Mapping[str, Any]) -> str:
    e = html.escape
    body = [f"<h1>{e(title)}</h1>", *(f"<p>{e(text)}</p>" for text in intro), _overview(sections)]
    for name, found in sections.items():
        kind = found["outcome"].replace(" ", "-")
        body += [
            f'<h2 id="{e(name)}">{e(name)}: {e(found["title"])}</h2>',
            f'<p class="claim">{e(found["claim"])}</p>',
            f'<p class="verdict {kind}"><b>{e(found["outcome"])}</b> {e(found["verdict"])}</p>',
            *(_html_picture(picture) for picture in found["pictures"]),
            _html_table(name, found),
        ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _overview(sections: Mapping[str, Any]) -> str:
    e = html.escape
    rows = (
        f'<tr><td><a href="#{e(name)}">{e(name)}</a> {e(found["title"])}</td>'
        f"<td>{e(found['outcome'])}</td></tr>"
        for name, found in sections.items()
    )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _html_picture(picture: Mapping[str, str]) -> str:
    file, text = html.escape(picture["file"], quote=True), html.escape(picture["caption"])
    return f'<figure><img src="{file}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _html_table(name: str, found: Mapping[str, Any]) -> str:
    columns, rows = found["table"]["columns"], found["table"]["rows"]
    if not rows:
        return ""

    def cell(path: str) -> str:
        if not path:
            return "<td></td>"
        text = _number(look_up(found["numbers"], path))
        return f'<td><data value="{html.escape(name)}.{html.escape(path)}">{text}</data></td>'

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = (
        f"<tr><td>{html.escape(row[0])}</td>{''.join(cell(path) for path in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _markdown(title: str, intro: Sequence[str], sections: Mapping[str, Any]) -> str:
    lines = [f"# {title}", "", *(f"{text}\n" for text in intro)]
    for name, found in sections.items():
        lines += [f"## {name}: {found['title']}", "", f"*{found['claim']}*", ""]
        lines += [f"**{found['outcome']}**: {found['verdict']}", ""]
        for picture in found["pictures"]:
            lines += [f"![{picture['caption']}]({picture['file']})", "", picture["caption"], ""]
        columns, rows = found["table"]["columns"], found["table"]["rows"]
        if rows:
            cells = (
                [label, *(_number(look_up(found["numbers"], p)) if p else "" for p in paths)]
                for label, *paths in rows
            )
            lines += [markdown_table([columns, *cells]), ""]
    return "\n".join(lines)


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first line is its header, and the first column its labels."""
    head, *rows = lines
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return "\n".join([_row(head), rule, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
    return str(value)
