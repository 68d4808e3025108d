"""The wheel as somebody else installs it, the site, and what importing costs."""

import importlib
import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = [
    "chiaroscuro",
    *(
        f"chiaroscuro.{room}"
        for room in ["ops", "mixers", "routing", "modeling", "data", "training", "evaluation", "analysis"]
    ),
]


def output(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment with the built wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    output(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    venv.create(folder / "venv")
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    output(*pip, "--python", python, "install", "--no-deps", wheel)
    (packages,) = folder.glob("venv/lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def test_the_wheel_is_whole_and_works_elsewhere(installed, tmp_path):
    (package,) = installed.glob("lib/*/site-packages/chiaroscuro")
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    assert {path.relative_to(package.parent) for path in package.rglob("*.py")} == sources
    assert (package / "py.typed").is_file()
    code = "import chiaroscuro; print(chiaroscuro.__file__)"
    assert output(installed / "bin" / "python", "-c", code, cwd=tmp_path).startswith(str(package))
    found = json.loads(output(installed / "bin" / "chiaroscuro", "audit", "chiar", "--json", cwd=tmp_path))
    assert all(each["holds"] is not False for each in found)


def test_what_can_be_added_is_named(installed):
    (metadata,) = installed.glob("lib/*/site-packages/chiaroscuro-*/METADATA")
    extras = {line.split()[1] for line in metadata.read_text().splitlines() if line.startswith("Provides-Extra:")}
    assert {"corpus", "data", "eval", "dev"} <= extras


ADDED = """
import sys
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401
before = set(sys.modules)
import chiaroscuro
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def test_importing_loads_nothing_that_transformers_own_model_classes_do_not():
    assert output(sys.executable, "-c", ADDED).split() == ["chiaroscuro"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site; that it builds is the first thing asked of it, as a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    output(sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder, cwd=ROOT)
    return folder


def test_the_reference_has_every_public_name(site):
    pages = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    for package in ROOMS:
        room = importlib.import_module(package)
        for name in room.__all__:
            # A function that its module is named for is found where it is made.
            places = (f"{package}.{name}", f"{getattr(getattr(room, name), '__module__', package)}.{name}")
            assert any(f'id="{place}"' in pages for place in places), f"{package}.{name}"


def test_the_site_fetches_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for fetched in re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text()):
            assert fetched.startswith("https://chiaroscuro"), f"{page}: {fetched}"
