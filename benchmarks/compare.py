"""Compare two files of results of one kind of machine: what has become slower, or needs more memory, by over a tenth?

    python benchmarks/compare.py OLD NEW [--allow 0.1]

What has a baseline is compared by its ratio to it, measured in the same run, so that a busy machine does not count; the
rest by its seconds. Exit status: 1 where something is worse, 2 where the files cannot be compared.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from basicsr.utils.errors import UserError
from benchmarks.results import KEY, read
from benchmarks.tables import Content, Entry, median, ratio


def figures(content: Content) -> dict[tuple[str, str], tuple[float, str]]:
    """(case, what) -> figure and what it is of; the smaller, the better."""
    ours = [entry for entry in content["rows"] if entry["side"] == "ours" and entry.get("seconds")]
    return {(case_of(entry), what): figure for entry in ours for what, figure in _figures(content, entry)}


def _figures(content: Content, entry: Entry) -> Iterator[tuple[str, tuple[float, str]]]:
    for what, of in (("time", median), ("memory", lambda each: float(each["peak"]))):
        against = ratio(content, entry, of)
        yield what, (of(entry), "s" if what == "time" else "bytes") if against is None else (against, "of the baseline")


def case_of(entry: Entry) -> str:
    return " ".join(str(entry[name]) for name in KEY)


def compared(old: Content, new: Content, allow: float) -> tuple[list[str], bool]:
    """A line for every figure in both, and whether one is worse by more than `allow`, as a share.

    Raises:
        UserError: the machines are not of one kind, or nothing is in both.
    """
    kinds = [content["machine"]["kind"] for content in (old, new)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{kinds[0]} and {kinds[1]} are two kinds of machine: compare files of one")
    before, after = figures(old), figures(new)
    common = [key for key in before if key in after and before[key][1] == after[key][1]]
    if not common:
        raise UserError("the files have no case in common")
    lines, any_worse = [], False
    for key in common:
        (was, unit), (is_now, _) = before[key], after[key]
        change = is_now / was
        worse = change > 1 + allow
        any_worse |= worse
        mark = "WORSE" if worse else ""
        lines.append(f"{mark:6}{key[0]:45} {key[1]:7} {was:12.4g} -> {is_now:<12.4g} {unit} ({change - 1:+.0%})")
    return lines, any_worse


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--allow", type=float, default=0.1, help="worse by no more than this share (default: 0.1)")
    args = parser.parse_args(argv)
    try:
        lines, worse = compared(read(args.old), read(args.new), args.allow)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
