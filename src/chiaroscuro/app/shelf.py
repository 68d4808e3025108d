"""The runs that a page may show, and no others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from chiaroscuro.training import COMPARISON, RESULTS, Run, load_run


class Shelf:
    """Run folders by the name they are shown under. They are read when they are asked for, and kept.

    patience: seconds that a visitor waits for the others.
    """

    def __init__(self, folders: Sequence[Path], patience: float = 30.0):
        self.patience = patience
        self._folders = {str(folder): folder for folder in folders}
        self._loaded: dict[str, Run] = {}
        self._busy = Lock()

    @property
    def names(self) -> list[str]:
        return list(self._folders)

    def again(self) -> "Shelf":
        """The same runs as other models in memory."""
        return Shelf(list(self._folders.values()), self.patience)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exclusive use of the models: all visitors share them, and a change to the routing of one reaches everybody.
        Raises TimeoutError where the others take longer than this shelf's patience."""
        if not self._busy.acquire(timeout=self.patience):
            raise TimeoutError(f"too many are asking: no answer within {self.patience:g} seconds, try again")
        try:
            yield
        finally:
            self._busy.release()

    def take(self, name: str) -> Run:
        """Raises ValueError for a name that is not on the shelf, and for a folder that is no run or broken."""
        if name not in self._folders:
            raise ValueError(f"{name} is not one of the runs of this page")
        if name not in self._loaded:
            self._loaded[name] = load_run(self._folders[name])
        return self._loaded[name]


def last_runs(below: Path) -> list[Path]:
    """The finished run below a folder that was written last, and those that `compare` trained with it."""
    results = [path for path in below.rglob(RESULTS) if (path.parent / "config.json").is_file()]
    if not results:
        return []
    last = max(results, key=lambda path: path.stat().st_mtime).parent
    compared = (last.parent / COMPARISON).is_file()
    beside = sorted(path.parent for path in results if path.parent.parent == last.parent and path.parent != last)
    return [last, *(beside if compared else [])]
