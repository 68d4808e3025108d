"""Prints constraints for pip: `python scripts/versions.py oldest` the oldest version that pyproject.toml allows of each
dependency, extras for users included, `newest` none.

Either way torch is the one that constraints.txt pins, or that of $TORCH: builds for the CPU are not on every index.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
if sys.argv[1:] not in (["oldest"], ["newest"]):
    sys.exit("either oldest or newest")
print(f"torch=={os.environ.get('TORCH', pinned)}")
if sys.argv[1] == "oldest":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("app", "corpus", "data", "eval"))
    for requirement in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        name, version = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        if name != "torch":
            print(f"{name}=={version}")
