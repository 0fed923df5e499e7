"""A folder of pictures and their index, for the tests of indexing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rag import LocalBackend
from rag.indexing.backends import hold
from rag.indexing.plan import make_plan, never
from rag.indexing.run import Report, carry_out, hash_sources
from rag.indexing.sources import find_sources
from rag.store.edge.store import EdgeStore
from tests.support.rag.fakes import FakeEncoder


def ignore(what: str, done: int, total: int, note: str) -> None:
    """Ignore the progress of a run."""


class Library:
    """A folder of pictures and its index. `run` does what `vision-rag index` does."""

    def __init__(self, top: Path, encoder: FakeEncoder | None = None) -> None:
        self.top = top / "pictures"
        self.top.mkdir()
        self.encoder = encoder or FakeEncoder()
        self.backend = LocalBackend(self.encoder, EdgeStore(top / "qdrant"))

    def write(self, **files: str) -> None:
        for name, content in files.items():
            path = self.top / f"{name.replace('__', '/')}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode())

    def remove(self, *names: str) -> None:
        for name in names:
            (self.top / f"{name}.png").unlink()

    def run(
        self, *given: object, prune: bool = False, dao_id: str = "me", **options: Any
    ) -> Report:
        sources = find_sources([str(name) for name in given or (self.top,)], (), **options)
        hashed, failures = hash_sources(sources, 4, ignore)
        held = hold(self.backend, "c", dao_id)
        plan = make_plan(hashed, held, sources.is_gone if prune else never)
        report = carry_out(plan, self.backend, "c", dao_id, 4, ignore)
        report.failures = sources.failures + failures + report.failures
        return report

    def held(self, dao_id: str = "me") -> dict[str, list[str]]:
        """Return the names of all files of each picture, by the name of its first file."""
        listed = {}
        for image in self.backend.images("c", dao_id=dao_id):
            paths = [image.path, *image.payload.get("duplicates", ())]
            names = [str(Path(path).relative_to(self.top).with_suffix("")) for path in paths]
            listed[names[0]] = names
        return listed

    def payload(self, name: str) -> dict[str, Any]:
        path = str(self.top / f"{name}.png")
        (payload,) = (
            image.payload
            for image in self.backend.images("c")
            if path in (image.path, *image.payload.get("duplicates", ()))
        )
        return payload


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.indexed, report.updated, report.unchanged, report.forgotten
