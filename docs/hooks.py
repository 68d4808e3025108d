"""What the site has that is not in this folder: the README as its first page, and the results that pages link to."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
_RESULTS = re.compile(r"\]\(\.\./(results/[^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    start = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=start))
    for page in Path(config.docs_dir).glob("*.md"):
        for name in _RESULTS.findall(page.read_text()):
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _RESULTS.sub(r"](\1", markdown)
