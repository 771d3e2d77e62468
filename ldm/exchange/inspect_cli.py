"""Tell what files of weights are: which networks, of which size and type, and what is missing for which use.

    stablesr-edge inspect FILE ...

FILE may be a .ckpt or .safetensors file, a folder in diffusers' layout, or hf://owner/name[/file]. Keys,
shapes and types are read, not the weights.
"""

from collections.abc import Sequence

from ldm.console import OneLineParser, configure_logging, exit_status, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging()
    parser = OneLineParser("stablesr-edge inspect", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to look at")
    return exit_status(lambda: run(parser.parse_args(argv).files), interrupted="interrupted")


def run(files: Sequence[str]) -> int:
    """Describe the files, one after the other."""
    # Only now, so that --help need not wait for torch.
    from ldm.models.formats.inspect import describe

    for file in files:
        say(str(describe(file)))
    return 0
