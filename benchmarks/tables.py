"""Write measured tables into the pages: README.md and docs/performance.md.

    python benchmarks/tables.py [--check]

A block that begins with <!-- benchmark TABLE FILE --> and ends with <!-- end --> holds that table of that file of
results (machine, steps, hardware, growth, operators, losses). --check changes nothing: status 1 where a page does not
say what its files say.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from basicsr.utils.errors import UserError
from benchmarks.networks import ROOT
from benchmarks.results import read

PAGES = ("README.md", "docs/performance.md")
BLOCK = re.compile(r"(<!-- benchmark (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Content = dict[str, Any]
Entry = dict[str, Any]
NAMES = {
    "plain": "training step",
    "full-edge": "training step, edge loss",
    "crop-edge": "training step, edge loss with `edge_crop: 16`",
    "sample": "sampling step",
    "sample-guided": "sampling step with guidance",
    "sample-tiled": "sampling step, four tiles",
    "picture": "upscaled picture, 4 steps",
    "encode": "encoding LQ and GT",
    "decode": "decoding",
    "degradation": "degradation, per picture",
    "loader": "reading, per picture",
    "start-up": "start to loaded weights",
    "help": "`main.py --help`",
    "first-step": "demo: one step, start to end",
    "save": "saving a checkpoint",
    "save-trained": "saving one, trained parts alone",
    "load": "loading a checkpoint",
}
COMPUTED = tuple(NAMES)[:9]  # rows whose time is spent in networks


def median(entry: Entry) -> float:
    return float(statistics.median(entry["seconds"]))


def of_row(content: Content, row: str) -> list[Entry]:
    """The entries of a row that were measured, the baseline first, by size, pixels, batch, precision (fp32 first)."""
    found = [entry for entry in content["rows"] if entry["row"] == row and entry.get("seconds")]
    order = ("size", "pixels", "batch", "side")
    return sorted(found, key=lambda entry: (*(entry[name] for name in order), entry["precision"] != "fp32"))


def baseline_of(content: Content, entry: Entry) -> Entry | None:
    """What was measured of the published way on the same inputs."""
    like = ("size", "pixels", "batch")
    found = (each for each in of_row(content, entry["row"]) if each["side"] == "baseline")
    return next((each for each in found if all(each[name] == entry[name] for name in like)), None)


def ratio(content: Content, entry: Entry, of: Callable[[Entry], float] = median) -> float | None:
    """To the baseline, None where there is none or where this is it."""
    base = baseline_of(content, entry)
    return None if base is None or base is entry else of(entry) / of(base)


def share_of_peak(content: Content, entry: Entry) -> float | None:
    """FLOPs that are done in a second over those of matrix products in the same precision."""
    peak = content["matmul"].get(entry["precision"])
    if entry["row"] not in COMPUTED or not peak or not entry["flop"]:
        return None
    return float(entry["flop"] / median(entry) / peak)


def measure(value: float, unit: str = "") -> str:
    """Three digits."""
    digits = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def seconds(entry: Entry) -> str:
    """The median, and the least and the greatest."""
    return f"{measure(median(entry))} ({measure(min(entry['seconds']))}–{measure(max(entry['seconds']))})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def machine_line(content: Content) -> str:
    """The machine, and how fast it multiplies."""
    machine, speeds = content["machine"], content["matmul"]
    memory = f"{machine['memory_gb']:.0f} GB"
    products = ", ".join(f"{value / 1e9:.0f} GFLOP/s in {name}" for name, value in sorted(speeds.items(), reverse=True))
    cores = f"{machine['cores']} cores, " if machine["device"] == "cpu" else ""
    what = f"{machine['name']} ({machine['capability']}), {cores}{memory}, PyTorch {machine['torch']}"
    return f"{what}; matrix products: {products or 'not measured yet'}."


def steps_table(content: Content) -> str:
    """Everything, an entry a line."""
    head = [
        "",
        "size, pixels, batch",
        "side",
        "seconds (range)",
        "ratio",
        "peak GB",
        "ratio",
        "TFLOP",
        "of peak",
        "difference",
    ]
    rows = []
    for row in NAMES:
        for entry in of_row(content, row):
            memory = ratio(content, entry, lambda each: float(each["peak"]))
            flop = f"{entry['flop'] / 1e12:.3g}" if row in COMPUTED else "–"
            where = f"{entry['size']}, {entry['pixels']}, {entry['batch']}"
            side = "published" if entry["side"] == "baseline" else f"ours {entry['precision']}"
            rows.append([
                NAMES[row], where, side, seconds(entry), optional(ratio(content, entry), ".2f"),
                f"{entry['peak'] / 1e9:.2f}", optional(memory, ".2f"), flop,
                optional(share_of_peak(content, entry), ".0%"), optional(entry.get("difference"), ".1e"),
            ])  # fmt: skip
    return markdown(head, rows)


def hardware_table(content: Content) -> str:
    """What a user wants to know of training and upscaling at full size: ours alone, beside the published time."""
    rows = []
    for row in ("plain", "full-edge", "crop-edge", "sample", "picture"):
        for entry in of_row(content, row):
            if entry["side"] == "ours" and entry["size"] == "full":
                what = f"{NAMES[row]}, {entry['pixels']} pixels, batch {entry['batch']}, {entry['precision']}"
                against = optional(ratio(content, entry), ".2f")
                rows.append([what, measure(median(entry), "s"), against, f"{entry['peak'] / 1e9:.1f} GB"])
    return markdown(["full-size networks", "time", "of the published way's", "peak memory"], rows)


def growth_table(content: Content) -> str:
    """Ours at several sides of pictures and batches: seconds and memory, and how many times those of the first line."""
    rows = []
    for row in COMPUTED:
        kinds: dict[tuple[str, str], list[Entry]] = {}
        for entry in of_row(content, row):
            if entry["side"] == "ours":
                kinds.setdefault((entry["size"], entry["precision"]), []).append(entry)
        for (size, precision), entries in kinds.items():
            for entry in entries if len(entries) > 1 else []:
                first = entries[0]
                rows.append([
                    f"{NAMES[row]}, {size}, {precision}", str(entry["pixels"]), str(entry["batch"]),
                    measure(median(entry), "s"), f"{median(entry) / median(first):.2f}",
                    f"{entry['peak'] / 1e9:.2f} GB", f"{entry['peak'] / first['peak']:.2f}",
                ])  # fmt: skip
    return markdown(["", "pixels", "batch", "time", "times", "peak memory", "times"], rows)


def operators_table(content: Content) -> str:
    """Where the time of a call goes: for every profiled case, the operators that take most of it."""
    rows = []
    for row in COMPUTED:
        for entry in of_row(content, row):
            if entry.get("operators"):
                side = "published" if entry["side"] == "baseline" else f"ours {entry['precision']}"
                shown = [
                    f"`{name.removeprefix('aten::')}` {measure(spent, 's')}"
                    for name, spent, _ in entry["operators"][:7]
                ]
                rows.append([NAMES[row], f"{entry['size']}, {entry['pixels']}", side, "; ".join(shown)])
    return markdown(["", "size, pixels", "side", "operators by their own time"], rows)


def losses_table(content: Content) -> str:
    """Of `loss_curves.py`: validation losses at equal steps and at equal time, and what bf16 changes."""
    arms, steps = content["arms"], content["steps"]
    whole = arms["fp32"]["seconds"][-1]
    parts = [(share, f"{name} of ") for share, name in ((0.25, "a quarter"), (0.5, "half"), (1.0, "all"))]
    head = [
        "",
        "s a step",
        *(f"{name}{steps} steps" for _, name in parts),
        *(f"{name}{whole:.0f} s" for _, name in parts),
    ]
    rows = []
    for name, arm in arms.items():
        by_step = {int(step): loss for step, loss in arm["validation"].items()}
        done = [sum(spent <= share * whole for spent in arm["seconds"]) for share, _ in parts]
        reached = [[share * steps for share, _ in parts], done]
        losses = [optional(_last(by_step, step), ".4f") for kind in reached for step in kind]
        rows.append([name, measure(arm["seconds"][steps - 1] / steps), *losses])
    return "\n".join([markdown(head, rows), *_bf16_lines(content)])


def _last(by_step: dict[int, float], step: float) -> float | None:
    """The last of the losses until a step."""
    return by_step[max(known)] if (known := [each for each in by_step if each <= step]) else None


def _bf16_lines(content: Content) -> list[str]:
    """Training losses of bf16 against fp32, and how near pictures are."""
    if "psnr" not in content:
        return []
    pairs = zip(*(content["arms"][name]["train"][: content["steps"]] for name in ("fp32", "bf16")), strict=True)
    apart = [abs(half - full) / abs(full) for full, half in pairs]
    told = (f"{name} {min(found):.1f} to {max(found):.1f} dB" for name, found in content["psnr"].items())
    line = f"bf16 against fp32, over {len(apart)} steps: the training loss differs by {max(apart):.1%} at most, "
    return ["", f"{line}{statistics.mean(apart):.1%} on average; pictures: {', '.join(told)}."]


TABLES: dict[str, Callable[[Content], str]] = {
    "machine": machine_line,
    "steps": steps_table,
    "hardware": hardware_table,
    "growth": growth_table,
    "operators": operators_table,
    "losses": losses_table,
}


def filled(page: str, folder: Path) -> str:
    """The page with all its blocks made anew from the files that they name, relative to `folder`.

    Raises:
        UserError: no such table, or no such file.
    """

    def block(found: re.Match[str]) -> str:
        begin, table, file, end = found.groups()
        if table not in TABLES:
            raise UserError(f"there is no table {table}: choose one of {', '.join(TABLES)}")
        content = read(folder / file, "arms" if table == "losses" else "rows")
        return f"{begin}{TABLES[table](content)}\n{end}"

    return BLOCK.sub(block, page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args(argv)
    stale = 0
    for page in (ROOT / name for name in PAGES):
        text = page.read_text()
        try:
            made = filled(text, ROOT)
        except UserError as error:
            print(f"error: {page.name}: {error}", file=sys.stderr)
            return 2
        if made != text:
            stale += 1
            print(f"{page.name}: {'does not say what its results say' if args.check else 'written'}")
            if not args.check:
                page.write_text(made)
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
