"""What a command has to do and what it has done, kept among its results, so that going on looks at neither again.

    OUTPUT/manifest/jobs.jsonl     what there is to do, a line each, below a line that says what was looked through
    OUTPUT/manifest/done-0.jsonl   what process 0 has done, a line each, once all files of it were whole
    OUTPUT/manifest/made_from.txt  a digest of what all results depend on
    OUTPUT/manifest/failed.txt     what could not be done when it was last tried, and why

Lines are JSON, for a file's name may hold whatever ends a line.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from basicsr.utils.errors import FieldError, printable
from basicsr.utils.files import OutputError, write_whole

log = logging.getLogger(__name__)
FOLDER = "manifest"
FILES = ("jobs.jsonl", "made_from.txt", "failed.txt")
UNSURE = 0  # in place of a folder's time of change: it is looked through again
SETTLED = 2 * 10**9  # nanoseconds: what was changed later than so long ago may have changed again unseen

Job = list[str]  # its name, and whatever else tells what to do
Find = Callable[[dict[str, int]], Iterable[Job]]  # jobs; it fills in what was looked through, see `list_pictures`


class Manifest:
    """Of the results in one folder. One process asks `jobs` and tells `failed`; each writes down what it has done."""

    def __init__(self, output: Path, rank: int = 0) -> None:
        self.folder = output / FOLDER
        self._output = output.resolve()
        self._done_file = self.folder / f"done-{rank}.jsonl"

    def jobs(self, question: Sequence[object], find: Find) -> list[Job]:
        """What there is to do: as it was listed before, where the question is the same and no folder has changed.

        A folder changes when something in it comes, goes or is called otherwise; not when a picture is written anew
        under its name. question: all that the list depends on but the folders.

        Raises:
            OutputError: the list cannot be written.
        """
        asked, file = json.loads(json.dumps(question, default=str)), self.folder / "jobs.jsonl"
        former = _listed(file)
        if former is not None:
            head, jobs = former
            if head["asked"] == asked and all(_unchanged(*each) for each in head["folders"].items()):
                return jobs
            log.info("%s: the inputs have changed, or others are asked for: they are listed again", file)
        before, looked_through = time.time_ns(), dict[str, int]()
        jobs = list(find(looked_through))
        # Results among the inputs change their folders, and are no inputs.
        folders = {
            folder: changed if changed < before - SETTLED else UNSURE
            for folder, changed in looked_through.items()
            if not Path(folder).resolve().is_relative_to(self._output)
        }
        write_whole(
            file, "".join(f"{json.dumps(line)}\n" for line in chain([{"asked": asked, "folders": folders}], jobs))
        )
        return jobs

    def unfinished(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that no process has written down as done."""
        done = set(chain.from_iterable(map(_names, self.folder.glob("done-*.jsonl"))))
        return [job for job in jobs if job[0] not in done]

    def check(self, made_from: str) -> None:
        """See that what is done depends on the same as what is to be.

        Raises:
            FieldError: it does not.
        """
        file = self.folder / "made_from.txt"
        if not file.is_file():
            write_whole(file, made_from)
        elif file.read_text() != made_from:
            raise FieldError(
                "output",
                f"is {self._output}, whose results were made with other settings or weights: choose another one, or "
                "overwrite them",
            )

    def done(self, name: str) -> None:
        """Write down that all files of the job of this name are there.

        Raises:
            OutputError: that cannot be written.
        """
        try:
            self._done.write(json.dumps(name).encode() + b"\n")
        except OSError as error:
            raise OutputError(self._done_file, error) from error

    @cached_property
    def _done(self) -> BinaryIO:
        """Each line goes to the file at once and whole, whichever thread writes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        former = self._done_file.read_bytes() if self._done_file.is_file() else b""
        file = cast(BinaryIO, self._done_file.open("ab", buffering=0))
        if former and not former.endswith(b"\n"):  # a killed process left its last line torn
            file.write(b"\n")
        return file

    def failed(self, lines: Sequence[str]) -> Path | None:
        """Keep what could not be done, in place of what could not before; the file, None where there is nothing."""
        file = self.folder / "failed.txt"
        if not lines:
            file.unlink(missing_ok=True)
            return None
        write_whole(file, "".join(printable(line.replace("\n", r"\n")) + "\n" for line in lines))
        return file

    def clear(self) -> None:
        """Forget all; results that lie in a folder of this name stay."""
        for file in (*self.folder.glob("done-*.jsonl"), *(self.folder / name for name in FILES)):
            file.unlink(missing_ok=True)


def _unchanged(folder: str, changed: int) -> bool:
    try:
        return changed != UNSURE and Path(folder).stat().st_mtime_ns == changed
    except OSError:
        return False


def _listed(file: Path) -> tuple[dict[str, Any], list[Job]] | None:
    """The first line and the others; None where there is no such file, or no whole one."""
    if not file.is_file():
        return None
    try:
        head, *jobs = json.loads(b"[%s]" % b",".join(file.read_bytes().splitlines()))
        return {"asked": head["asked"], "folders": dict(head["folders"])}, jobs
    except (ValueError, LookupError, TypeError):
        log.warning("%s is damaged: the inputs are listed again", file)
        return None


def _names(file: Path) -> Iterator[str]:
    """Of what is done. A line that a killed process left torn names nothing."""
    for line in file.read_bytes().splitlines():
        try:
            yield str(json.loads(line))
        except ValueError:
            log.debug("%s: a torn line", file)
