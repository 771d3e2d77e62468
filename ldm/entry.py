"""The command `stablesr-edge`: one name in front of the programs' own command lines, of which it loads only the one."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from basicsr.utils.errors import did_you_mean
from ldm.machine import let_threads_wait


class Command(NamedTuple):
    """A program: `main` in `module` takes the words after the command's name and returns the exit status."""

    module: str
    help: str


# To add a program, add its line.
COMMANDS = {
    "train": Command("ldm.training.cli", "train a model, or go on with a run"),
    "upscale": Command("ldm.inference.cli", "make pictures larger and sharper"),
    "evaluate": Command("ldm.evaluation.measure.cli", "measure the checkpoints of runs"),
    "compare": Command("ldm.evaluation.report.cli", "compare the runs of a report"),
    "generate-cfw-data": Command("ldm.inference.generate_cfw_data", "make the data that CFW trains on"),
    "inspect": Command("ldm.exchange.inspect_cli", "tell what a file of weights is"),
    "export": Command("ldm.exchange.export_cli", "write weights in other forms, and bring them to the hub"),
    "pack": Command("ldm.data.pack_cli", "put a folder of pictures into tar files, or into a database"),
    "edge-maps": Command("ldm.inference.edge_maps", "write the edge maps of a folder"),
    "app": Command("ldm.inference.app", "serve a web page that upscales pictures"),
}
USAGE = "\n".join(
    [
        "usage: stablesr-edge COMMAND ...",
        "",
        *(f"  {name:19}{command.help}" for name, command in COMMANDS.items()),
        "",
        "stablesr-edge COMMAND --help lists a command's options",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; returns the exit status, 2 where there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"{USAGE}\n")
        return 0
    if not words or words[0] not in COMMANDS:
        problem = f"there is no command {words[0]!r}{did_you_mean(words[0], COMMANDS)}" if words else "no command"
        sys.stderr.write(f"error: {problem}\n{USAGE}\n")
        return 2
    let_threads_wait()
    status: int = import_module(COMMANDS[words[0]].module).main(words[1:])
    return status
