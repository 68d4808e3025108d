"""The Python files of the standard library: source code that every installation has, so that nothing is fetched.

A name recurs far away in a program, unlike most words of a review, so that this text needs attention (docs/log.md,
2026-11-30).
"""

import sysconfig
from pathlib import Path

# Tests, other people's packages, and what hardly is in the language's style: tables of characters, texts in a
# string, and whole applications.
_LEFT_OUT = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages"),
    *("encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo"),
}
_OF_THIS_BUILD = ("_sysconfigdata", "config-")  # what a name begins with


def modules() -> dict[str, list[Path]]:
    """The files of each module or package that stands at the top of the running Python's library, by its name.

    Raises ValueError where there are none, as with a Python whose library is an archive.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root)
        if _LEFT_OUT.isdisjoint(place.parts) and not place.parts[0].startswith(_OF_THIS_BUILD) and _says_anything(file):
            found.setdefault(place.parts[0].removesuffix(".py"), []).append(file)
    if not found:
        raise ValueError(f"no Python files in {root}: data 'python' needs a Python whose library lies there as files")
    return found


def _says_anything(file: Path) -> bool:
    return bool(file.read_bytes().strip())
