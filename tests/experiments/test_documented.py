"""The commands that the pages show are such as the scripts take."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from experiments.harness import command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *(ROOT / "docs").rglob("*.md")]
COMMAND = re.compile(r"python -m experiments\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)((?:\\\n|[^\n`#|])*)")


def shown():
    """Return the scripts and their options, each once."""
    found = {match for page in PAGES for match in COMMAND.findall(page.read_text("utf-8"))}
    words = {(name, tuple(shlex.split(rest.replace("\\\n", " ")))) for name, rest in found}
    return sorted((name, options) for name, options in words if "--help" not in options)


class Parsed(Exception):
    """The options are taken."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_scripts_take_the_options_that_are_shown(monkeypatch):
    def stop(*_, **__):
        raise Parsed

    monkeypatch.setattr(command, "running", stop)
    commands = [each for each in shown() if each[0] != "overview"]  # has a command line of its own
    assert len(commands) > 50
    for name, options in commands:
        monkeypatch.setattr(sys, "argv", [name, *options])
        with pytest.raises(Parsed):
            runpy.run_module(f"experiments.{name}", run_name="__main__")
