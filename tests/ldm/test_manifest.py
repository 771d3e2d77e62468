"""A manifest: what it spares, what makes it look again, and what it bears."""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from basicsr.utils.errors import FieldError
from basicsr.utils.img_util import list_pictures
from ldm.inference.manifest import Job, Manifest

ODD = ["a\nb.png", 'quote".png', "back\\slash.png", "Ä ß.png", os.fsdecode(b"\xff.png"), "tab\t.png"]


class Work:
    """A folder `in` of pictures, and how often it was listed."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.output, self.listed = folder / "in", folder / "out", 0
        (self.inputs / "sub").mkdir(parents=True)
        self.add("a.png", "sub/b.png")

    def add(self, *names: str) -> None:
        for name in names:
            (self.inputs / name).write_bytes(b"")
        self.settle()

    def settle(self) -> None:
        """As if it had been changed last a minute ago."""
        for folder in (self.inputs, self.inputs / "sub"):
            if folder.is_dir():
                os.utime(folder, ns=(0, folder.stat().st_mtime_ns - 60 * 10**9))

    def _found(self, looked_through: dict[str, int]) -> Iterable[Job]:
        self.listed += 1
        found = list_pictures(self.inputs, looked_through=looked_through)
        return [[os.path.relpath(path, self.inputs)] for path in found]

    def jobs(self, question: str = "") -> list[str]:
        return [name for (name,) in Manifest(self.output).jobs([question, self.inputs], self._found)]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_inputs_are_listed_once_and_again_when_a_folder_has_changed(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert work.jobs() == ["a.png", "sub/b.png"] == work.jobs() and work.listed == 1
    assert not caplog.messages
    work.add("sub/c.png")
    assert work.jobs() == ["a.png", "sub/b.png", "sub/c.png"] == work.jobs() and work.listed == 2
    assert ["the inputs have changed" in line for line in caplog.messages] == [True]
    (work.inputs / "a.png").unlink()
    work.settle()
    assert work.jobs() == ["sub/b.png", "sub/c.png"] and work.listed == 3
    assert work.jobs("other edges") == ["sub/b.png", "sub/c.png"] and work.listed == 4


def test_a_folder_that_has_just_changed_is_looked_through_again(work: Work) -> None:
    os.utime(work.inputs, ns=(0, time.time_ns()))
    work.jobs()
    work.jobs()
    assert work.listed == 2


def test_results_among_the_inputs_are_no_change_of_them(work: Work) -> None:
    work.output = work.inputs / "sub" / "out"
    work.output.mkdir()
    work.settle()
    work.jobs()
    (work.output / "more").mkdir()
    work.jobs()
    assert work.listed == 1


def test_whatever_a_file_is_called_it_is_done_once_by_whichever_process(work: Work) -> None:
    work.add(*ODD)
    names = work.jobs()
    assert set(ODD) < set(names) and names == work.jobs()
    for rank, name in enumerate(ODD):
        Manifest(work.output, rank % 2).done(name)
    left = Manifest(work.output).unfinished([[name] for name in names])
    assert [name for (name,) in left] == ["a.png", "sub/b.png"]


def test_a_torn_line_counts_for_nothing_and_the_next_is_whole(work: Work) -> None:
    jobs = [[name] for name in work.jobs()]
    first = Manifest(work.output)
    first.done("a.png")
    with (work.output / "manifest/done-0.jsonl").open("ab") as file:
        file.write(b'"sub/b')  # a killed process
    assert Manifest(work.output).unfinished(jobs) == [["sub/b.png"]]
    Manifest(work.output).done("sub/b.png")
    assert Manifest(work.output).unfinished(jobs) == []


@pytest.mark.parametrize("content", [b"", b"{}\n", b'["a.png"]\n', b'{"asked": 1, "folders": {}}\n["a'])
def test_a_damaged_list_is_made_again(work: Work, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    work.jobs()
    (work.output / "manifest/jobs.jsonl").write_bytes(content)
    assert work.jobs() == ["a.png", "sub/b.png"] and work.listed == 2
    assert "jobs.jsonl is damaged" in caplog.text


def test_results_of_other_settings_are_not_gone_on_with(work: Work) -> None:
    manifest = Manifest(work.output)
    manifest.check("these")
    manifest.check("these")
    with pytest.raises(FieldError, match="made with other settings or weights: choose another one, or overwrite them"):
        Manifest(work.output).check("those")
    manifest.done("a.png")
    (work.output / "manifest/result.png").write_bytes(b"")  # of an input in a folder that is called so
    manifest.clear()
    assert [file.name for file in (work.output / "manifest").iterdir()] == ["result.png"]
    Manifest(work.output).check("those")


def test_failures_are_kept_as_long_as_they_last(work: Work) -> None:
    manifest = Manifest(work.output)
    file = manifest.failed(["a.png: broken\nin two", "b.png: gone"])
    assert file is not None and file.read_text() == "a.png: broken\\nin two\nb.png: gone\n"
    assert manifest.failed([]) is None and not file.exists()
