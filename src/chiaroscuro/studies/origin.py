"""By which code and from which data results were made, so that others are not added to them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import chiaroscuro
from chiaroscuro.modeling import read_json
from chiaroscuro.training import Task, versions, write_json

ROOMS = ("ops", "mixers", "routing", "modeling", "flops", "data", "training", "evaluation")


@dataclass(frozen=True)
class Origin:
    """Digests of the source that numbers come from, and of the data."""

    code: str
    data: str

    @property
    def name(self) -> str:
        """What a folder is called that holds nothing of another origin."""
        return hashlib.sha256(f"{self.code} {self.data}".encode()).hexdigest()[:12]


def code_digest() -> str:
    """A hash of the source that a run's numbers come from; how they are shown may change."""
    digest = hashlib.sha256()
    folder = Path(chiaroscuro.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if place.parts[0].removesuffix(".py") in ROOMS:
            digest.update(str(place).encode() + path.read_bytes())
    return digest.hexdigest()


def origin_of(task: Task) -> Origin:
    """That of results made now on the data of `task`."""
    return Origin(code_digest(), hashlib.sha256(json.dumps(task.digests()).encode()).hexdigest())


def claim(results: Path, origin: Origin) -> None:
    """Note in the folder `results` by what they are made, and by which commit. Raises ValueError when those that are
    there were made by something else."""
    (results / "runs").mkdir(parents=True, exist_ok=True)
    path = results / "study.json"
    if path.exists():
        known = read_json(path)
        changed = [name for name, digest in asdict(origin).items() if known.get(name) != digest]
        if changed:
            raise ValueError(
                f"{results} holds results of other {' and '.join(changed)}, made by commit "
                f"{known.get('commit', 'unknown')}: move it away, or give another --results"
            )
        return
    made = versions()
    write_json(path, asdict(origin) | {"commit": made["commit"], "command": made["command"]})
