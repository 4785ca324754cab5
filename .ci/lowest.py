"""Print the lowest versions that pyproject.toml asks for, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
project = tomllib.loads(text)["project"]
extras = project["optional-dependencies"]
asked = [*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]
for line in asked:
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*>=\s*([\w.]+)", line)
    if found:
        print(f"{found[1]}=={found[2]}")
