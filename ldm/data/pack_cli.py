"""Pack a folder of pictures into a few large files, for disks and networks that are slow with many small ones.

    stablesr-edge pack FOLDER OUT                    # tar files in the folder OUT: io_backend: {type: tar}
    stablesr-edge pack FOLDER NAME.lmdb --type lmdb  # BasicSR's database: io_backend: {type: lmdb}

Pictures stay as they are, byte for byte. `gt_path` then names OUT; the same seed gives the same batches as the folder.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from ldm.console import OneLineParser, configure_logging, exit_status, path_argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("basicsr")
    parser = OneLineParser("stablesr-edge pack", description=__doc__)
    parser.add_argument("FOLDER", type=path_argument, help="pictures, with its subfolders")
    parser.add_argument("OUT", type=path_argument, help="what to write; it must not be there yet")
    parser.add_argument("--type", choices=("tar", "lmdb"), default="tar", help="default: tar")
    parser.add_argument("--shard_mb", type=int, default=1024, metavar="N", help="size of a tar file (default: 1024)")
    return exit_status(lambda: run(parser.parse_args(argv)), interrupted="interrupted: nothing was written")


def run(args: Namespace) -> int:
    """Pack, and say how many pictures there were."""
    from basicsr.data.pack import pack
    from basicsr.utils import checks

    checks.whole_number("shard_mb", args.shard_mb, 1)
    count = pack(args.FOLDER, args.OUT, args.type, args.shard_mb * 10**6)
    sys.stdout.write(f"{count} pictures are in {args.OUT}\n")
    return 0
