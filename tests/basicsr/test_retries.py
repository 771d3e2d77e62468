"""Reading again what could not be read: which errors pass by themselves, and how often it is tried."""

import errno
from pathlib import Path

import pytest

from basicsr.utils import retries
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError
from basicsr.utils.img_util import read_picture
from basicsr.utils.retries import check_retries, with_retries


class Faltering:
    """Fails by these errors, one a call, and then reads."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "read"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, in place of the waiting."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def told(error: OSError) -> UserError:
    """As whoever reads pictures tells of it."""
    problem = UserError("a.png: cannot be read")
    problem.__cause__ = error
    return problem


def test_what_passes_is_tried_again_after_ever_longer_pauses(pauses: list[float]) -> None:
    read = Faltering(OSError(errno.EIO, "Input/output error"), told(OSError(errno.ESTALE, "Stale file handle")))
    assert with_retries(read, 2) == "read" and read.calls == 3
    assert pauses == [1, 2]
    again = Faltering(TimeoutError(), TimeoutError())
    with pytest.raises(TimeoutError):
        with_retries(again, 1)
    assert again.calls == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        UserError("its content is of no known type"),
        OutputError(Path("result.png"), OSError(errno.EIO, "Input/output error")),
    ],
)
def test_what_stays_is_told_at_once(error: Exception) -> None:
    read = Faltering(error)
    with pytest.raises(type(error)):
        with_retries(read, 5)
    assert read.calls == 1


def test_a_picture_that_an_erring_disk_holds_back_is_of_those_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def erring(*words: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", erring)
    with pytest.raises(UserError, match=r"a\.png: cannot be read as a picture \(Input/output error\)") as caught:
        read_picture("a.png")
    assert retries.passes(caught.value)


def test_a_number_that_cannot_be() -> None:
    with pytest.raises(FieldError, match="is -1: give 0 or more"):
        check_retries(-1)
