"""The report: what each claim says, its pictures, its numbers, and whether it holds.

A table cell names a number of results.json by its path, so that nothing can be quoted that is not
in there; the page keeps that path in a `data` element.
"""

import html
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.55 system-ui, sans-serif;
  --good: light-dark(#00724f, #4cc9a0); --half: light-dark(#8a5a00, #e6b04a);
  --bad: light-dark(#a33c00, #f08a52); }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; } p { max-width: 46rem; }
h2 { margin: 3rem 0 .3rem; border-top: 1px solid; padding-top: 1.6rem; }
.claim, figcaption { opacity: .75; max-width: 46rem; } .claim { font-style: italic; }
.verdict { border-left: 4px solid; padding: .3rem .9rem; }
.holds b { color: var(--good); } .holds-in-part b { color: var(--half); }
.does-not-hold b { color: var(--bad); }
figure { margin: 1.4rem 0; } img { max-width: 100%; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem; border-bottom: 1px solid; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
"""


def outcome(share: float) -> str:
    """Name what a share of cases for which a claim held amounts to."""
    return HOLDS if share >= 0.99 else FAILS if share <= 0.01 else IN_PART


def percent(share: float) -> str:
    """Write a share for a sentence, e.g. 34.4 %."""
    return f"{100 * share:.3g} %"


def section(
    *,
    title: str,
    claim: str,
    verdict: tuple[str, str],
    numbers: Mapping[str, Any],
    pictures: Mapping[str, str] | Sequence[tuple[str, str]],
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Put together what an experiment found; everything but `table` belongs in results.json.

    Args:
        title: Heading.
        claim: The claim, as the slides make it.
        verdict: Outcome ("holds", "holds in part", "does not hold") and a sentence with numbers.
        numbers: Nested dictionary of what was measured.
        pictures: File names and captions.
        columns: Header of the table, the first for the row labels.
        rows: Each a label and the dotted paths of its numbers; an empty path leaves a gap.
    """
    return {
        "title": title,
        "claim": claim,
        "outcome": verdict[0],
        "verdict": verdict[1],
        "numbers": plain(numbers),
        "pictures": [{"file": file, "caption": text} for file, text in dict(pictures).items()],
        "table": {"columns": list(columns), "rows": [list(row) for row in rows]},
    }


def rows_of(columns: Sequence[str], quoted: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return rows that quote the same number of every column: `column.path`."""
    return [[label, *(f"{column}.{path}" for column in columns)] for label, path in quoted]


def look_up(numbers: Mapping[str, Any], path: str) -> Any:
    """Return the number at a dotted path, e.g. `exact.residual.median`."""
    found: Any = numbers
    for name in path.split("."):
        found = found[name]
    return found


def without_tables(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return of each section what belongs in results.json."""
    return {
        name: {key: value for key, value in found.items() if key != "table"}
        for name, found in sections.items()
    }


def write_results(
    folder: Path,
    title: str,
    intro: Sequence[str],
    sections: Mapping[str, Any],
    *,
    run: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Write the report, results.json and run.json, say what held; return the results.

    `run` holds the seed, the seconds, and what else run.json says, and `more` what results.json
    holds besides the claims.
    """
    results = {**more, "claims": without_tables(sections)}
    write_report(folder, title, intro, sections)
    write_numbers(folder, results, **run)
    for name, found in sections.items():
        print(f"{name} {found['outcome']}: {found['title']}\n{found['verdict']}")
    print(f"report: {folder / 'report.html'}")
    return results


def write_numbers(
    folder: Path,
    results: Any,
    *,
    seed: int,
    seconds: Mapping[str, Any],
    table: str | None = None,
    **run: Any,
) -> Any:
    """Write results.json and run.json, and tables to table.md; return the results as written.

    `run` is what run.json says besides.
    """
    found = plain(results)
    write_json(folder / "results.json", found)
    write_json(folder / "run.json", provenance(seed, plain(seconds)) | run)
    if table is not None:
        file = write_text(folder / "table.md", f"{table}\n")
        print(f"{table}\n\ntable: {file}")
    return found


def write_report(
    folder: Path, title: str, intro: Sequence[str], sections: Mapping[str, Any]
) -> None:
    """Write report.html into a folder that holds the pictures."""
    e = html.escape
    overview = (
        f'<tr><td><a href="#{e(name)}">{e(name)}</a> {e(found["title"])}</td>'
        f"<td>{e(found['outcome'])}</td></tr>"
        for name, found in sections.items()
    )
    body = [
        f"<h1>{e(title)}</h1>",
        *(f"<p>{e(text)}</p>" for text in intro),
        f'<div class="wide"><table>{"".join(overview)}</table></div>',
    ]
    for name, found in sections.items():
        kind = found["outcome"].replace(" ", "-")
        body += [
            f'<h2 id="{e(name)}">{e(name)}: {e(found["title"])}</h2>',
            f'<p class="claim">{e(found["claim"])}</p>',
            f'<p class="verdict {kind}"><b>{e(found["outcome"])}</b> {e(found["verdict"])}</p>',
        ]
        for picture in found["pictures"]:
            file, text = e(picture["file"]), e(picture["caption"])
            body.append(
                f'<figure><img src="{file}" alt="{text}"><figcaption>{text}</figcaption></figure>'
            )
        body.append(_table(name, found))
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    write_text(folder / "report.html", page)


def _table(name: str, found: Mapping[str, Any]) -> str:
    columns, rows = found["table"]["columns"], found["table"]["rows"]
    if not rows:
        return ""

    def cell(path: str) -> str:
        if not path:
            return "<td></td>"
        place, number = html.escape(f"{name}.{path}"), _number(look_up(found["numbers"], path))
        return f'<td><data value="{place}">{number}</data></td>'

    lines = ["".join(f"<th>{html.escape(column)}</th>" for column in columns)]
    for label, *paths in rows:
        lines.append(f"<td>{html.escape(label)}</td>{''.join(map(cell, paths))}")
    return f'<div class="wide"><table><tr>{"</tr><tr>".join(lines)}</tr></table></div>'


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, aligned: the first line is its header, the first column labels."""
    head, *rows = lines
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in (head, rule, *rows)
    )


def _number(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
    return str(value)


_DIGITS = 6  # significant digits kept in JSON: what float32 can repeat
_PACKAGES = ("foliax", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "matplotlib")


def write_text(path: Path, text: str) -> Path:
    """Write a text file beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write sorted JSON atomically; see `plain` for how numbers are kept."""
    text = json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def plain(value: Any) -> Any:
    """Turn arrays and numbers into JSON's own; floats to six digits, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        number = float(f"{value:.{_DIGITS}g}")
        return number if math.isfinite(number) else None
    if isinstance(value, str | int) or value is None:
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def provenance(seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Say how a result came about: all that may differ between two runs that must agree."""
    device = jax.devices()[0]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpus": os.cpu_count()},
        "seed": seed,
        "seconds": dict(seconds),
        "revision": _revision(),
    }


def _revision() -> str | None:
    """Return the commit of the tree that this file is in, marked where it was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except OSError:  # no git
        return None
    return commit + (" (changed)" if changed else "") or None
