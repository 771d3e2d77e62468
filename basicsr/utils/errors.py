"""The one exception that is meant for a user's eyes, and the sentences that all its messages share."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# What may move the cursor, colour, ring, or turn the writing round, and halves of characters, which cannot be written.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what to do.

    Command lines print the message alone and exit with status 2; every other exception is a bug and keeps its trace.
    """


class FieldError(UserError):
    """A setting that cannot be: `field`, the setting's own name, and `problem`, such as "is 0: give 1 or more".

    A library knows the field, its caller what the user calls it (a flag, a YAML key, a label on a page): see
    `fields_named`.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


@contextmanager
def fields_named(name: Callable[[str], str]) -> Iterator[None]:
    """Within this context a `FieldError` is told under the name that `name` gives its field."""
    try:
        yield
    except FieldError as error:
        raise FieldError(name(error.field), error.problem) from error


def first_line(error: BaseException, skip: int = 0) -> str:
    """The first line of an error's message that says something, `skip` such lines later; its class where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(skip, len(lines) - 1)] if lines else type(error).__name__


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that a mistyped word most likely means, None where nothing is near."""
    near = get_close_matches(word, sorted(known), n=1, cutoff=0.55)
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'gt_path'?", or the whole list where nothing is near and the list is short."""
    names = sorted(known)
    near = closest(word, names)
    if near:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(names)}" if len(names) <= 40 else ""


def printable(text: str) -> str:
    r"""The text with control characters, as names of files may hold them, spelt out: `\x1b`. Ends of lines stay."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
