"""One process's part of the pictures to be upscaled, and where it is written down what became of them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from basicsr.utils.errors import FieldError
from ldm.inference.folder import EdgePlace, FileOptions, UpscaleTask, check_names, list_tasks, task_of
from ldm.inference.manifest import Manifest
from ldm.inference.references import references_of
from ldm.inference.sharing import Team

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Where pictures are, and where results go: see `list_tasks`, `references_of`."""

    source: Path
    output: Path
    edges: EdgePlace = None
    reference: Path | None = None

    def names(self, options: FileOptions, looked_through: dict[str, int] | None = None) -> list[str]:
        """The pictures' paths below `source`; its own name where it is one.

        Raises:
            UserError: there is none, or results would be written over each other or over pictures.
        """
        tasks = list_tasks(self.source, self.output, self.edges, looked_through)
        check_names(tasks, options)
        return list(map(self.name, tasks))

    def name(self, task: UpscaleTask) -> str:
        """The path of a task's picture below `source`."""
        return str(task.source.relative_to(self._root))

    def tasks(self, names: Iterable[str]) -> list[UpscaleTask]:
        """The tasks of some of them. Raises FieldError where one has no reference, and there are to be any."""
        tasks = [task_of(self._root / name, self.source, self.output, self.edges) for name in names]
        if self.reference is None:
            return tasks
        found = references_of([task.source for task in tasks], self.source, self.reference)
        return [replace(task, reference=file) for task, file in zip(tasks, found, strict=True)]

    @cached_property
    def _root(self) -> Path:
        return self.source if self.source.is_dir() else self.source.parent


@dataclass(frozen=True)
class Share:
    """This process's tasks. finished_before: pictures of all that are done, as the manifest says, if there is one."""

    places: Places
    tasks: list[UpscaleTask]
    finished_before: int = 0
    manifest: Manifest | None = None

    @classmethod
    def of(cls, team: Team, places: Places, options: FileOptions, *, manifest: bool = False) -> "Share":
        """The first process lists the pictures, or reads of them in the manifest, for all.

        Raises:
            UserError: see `Places`; or a manifest is asked for of one picture.
        """
        if manifest and not places.source.is_dir():
            raise FieldError("manifest", f"is of a folder's pictures, and {places.source} is none: leave it out")
        kept = Manifest(places.output, team.rank)

        def names() -> tuple[list[str], int]:
            if options.overwrite:
                kept.clear()
            if not manifest:
                found = places.names(options)
                return found, len(found)
            question = [places.source.absolute(), places.edges, options.edges, options.compare]
            jobs = kept.jobs(question, lambda through: [[name] for name in places.names(options, through)])
            left = kept.unfinished(jobs)
            log.info("%s: %d pictures, %d of them to do", kept.folder, len(jobs), len(left))
            return [name for (name,) in left], len(jobs)

        left, count = team.agreed(team.together(lambda: names() if team.first else ([], 0)))
        tasks = team.together(lambda: places.tasks(team.share(left)))
        return cls(places, tasks, count - len(left), kept if manifest else None)

    def done(self, task: UpscaleTask) -> None:
        """Write down that a task's files are all there."""
        if self.manifest is not None:
            self.manifest.done(self.places.name(task))

    def check(self, made_from: str) -> None:
        """Raise FieldError where what is done was made with other settings or weights than what is to be."""
        if self.manifest is not None:
            self.manifest.check(made_from)

    def list_failures(self, lines: Sequence[str]) -> Path | None:
        """Keep what failed; the file, where there is one."""
        return None if self.manifest is None else self.manifest.failed(lines)
