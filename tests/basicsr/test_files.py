"""Files are there whole or not at all; errors and ranges say what they should."""

from pathlib import Path

import pytest
import torch

from basicsr.utils.errors import FieldError, did_you_mean, fields_named, first_line
from basicsr.utils.files import OutputError, digest, whole_file, write_whole
from basicsr.utils.ranges import from_pm1, rounded_01, to_pm1, to_u8, truncated_u8


def test_an_interrupted_write_leaves_the_former_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "results" / "table.csv"
    write_whole(path, "former\n")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "former\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_told_with_its_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is needed")
    with pytest.raises(OutputError, match="table.csv cannot be written") as told:
        write_whole(tmp_path / "taken" / "table.csv", "")
    assert told.value.path == tmp_path / "taken" / "table.csv"


def test_a_digest_depends_on_the_parts_and_on_their_bounds() -> None:
    assert digest("ab", "c") == digest(b"ab", b"c")
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("c", "ab")}) == 4


def test_a_field_is_told_under_the_name_its_user_knows() -> None:
    with pytest.raises(FieldError, match="^--steps is 0: give 1 or more$") as told, fields_named("--{}".format):
        raise FieldError("steps", "is 0: give 1 or more")
    assert (told.value.field, told.value.problem) == ("--steps", "is 0: give 1 or more")


def test_lines_and_hints() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError("one\n\ntwo"), skip=1) == first_line(ValueError("one\ntwo"), skip=5) == "two"
    assert first_line(ValueError()) == "ValueError"
    assert did_you_mean("gt_pat", ["gt_path", "batch"]) == "; did you mean 'gt_path'?"
    assert did_you_mean("xyz", ["gt_path", "batch"]) == "; known: batch, gt_path"


def test_ranges_and_their_way_back() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(to_u8(from_pm1(to_pm1(levels))), torch.arange(256, dtype=torch.uint8))
    assert to_u8(torch.tensor([-0.1, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 2.0])).tolist() == [0, 0, 1, 255]
    assert torch.equal(rounded_01(levels + 0.001), levels)
    assert truncated_u8(torch.tensor([-2.0, -1.0, 0.0, 0.999, 3.0, float("nan")]), -1, 1).tolist() == [
        0, 0, 127, 254, 255, 0,
    ]  # fmt: skip
