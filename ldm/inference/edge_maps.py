"""Write the edge maps of a folder of pictures: white edges on black, as PNG, each of its picture's size.

    python scripts/edge_maps.py IN OUT [--thresholds median] [--closing 3] [--invert]

OUT has the folders of IN and a NAME.png for each picture, which is what `edge_map_path` of a data set reads. Where OUT
is IN, the maps lie beside the pictures as NAME_edge.png. Maps that are there already, and may have been drawn in, are
kept unless --overwrite is given. They are the maps that training makes by itself (`EdgeMapGenerator`). Exit status: 0,
1 where pictures were left out, 2 where nothing could be done.
"""

import argparse
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from basicsr.utils.errors import FieldError, UserError, fields_named
from basicsr.utils.files import OutputError, write_whole
from ldm.console import OneLineParser, configure_logging, path_argument, say_error

if TYPE_CHECKING:
    from basicsr.utils.edge_utils import EdgeMapGenerator

log = logging.getLogger(__name__)

BESIDE = "_edge"  # what a map beside its picture has at the end of its name
# This program's flags, by the generator's arguments.
FLAGS = {
    "threshold_mode": "thresholds",
    "low_threshold": "low",
    "high_threshold": "high",
    "median_low_factor": "low_factor",
    "median_high_factor": "high_factor",
    "gaussian_kernel_size": "blur",
    "gaussian_sigma": "sigma",
    "morph_kernel_size": "closing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.inference")
    try:
        with fields_named(lambda field: f"--{FLAGS.get(field, field)}"):
            return run(make_parser().parse_args(argv))
    except UserError as error:
        return say_error(str(error))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser("edge_maps.py", description=__doc__)
    add = parser.add_argument
    add("input", type=path_argument, metavar="IN", help="folder of pictures, searched with its subfolders")
    add(
        "output", type=path_argument, metavar="OUT", help="folder for the maps; IN itself puts them beside the pictures"
    )
    add(
        "--thresholds", choices=("fixed", "median"), default="fixed", help="the same for all pictures, or by its median"
    )
    add("--low", type=float, metavar="N", help="fixed: gradient that continues an edge (100)")
    add("--high", type=float, metavar="N", help="fixed: gradient that starts one (200)")
    add("--low_factor", type=float, metavar="F", help="median: the low threshold over the median grey value (0.7)")
    add("--high_factor", type=float, metavar="F", help="median: the high one over it (1.3)")
    add("--blur", type=int, default=5, metavar="N", help="side of the Gaussian blur in pixels, odd; 1 for none (5)")
    add("--sigma", type=float, default=1.4, metavar="S", help="its standard deviation in pixels (1.4)")
    add("--closing", type=int, metavar="N", help="side of the closing that joins edges, odd; 0 for none (median: 3)")
    add("--invert", action="store_true", help="black edges on white, to look at: training reads white ones")
    add("--overwrite", action="store_true", help="make maps anew that are there already")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the maps; returns the exit status.

    Raises:
        UserError: a value that cannot be, no pictures, or a folder that cannot be written.
    """
    # Only now, so that --help and mistakes in the flags need not wait for torch.
    from tqdm import tqdm

    from basicsr.utils.edge_utils import EdgeMapGenerator
    from basicsr.utils.img_util import find_pictures

    mode = args.thresholds
    for flag, of in (("low", "fixed"), ("high", "fixed"), ("low_factor", "median"), ("high_factor", "median")):
        if getattr(args, flag) is not None and of != mode:
            raise FieldError(flag, f"belongs to --thresholds {of}")
    generator = EdgeMapGenerator(**{name: getattr(args, flag) for name, flag in FLAGS.items()})
    beside = args.output.resolve() == args.input.resolve()
    pictures = find_pictures(args.input, name="IN")
    if beside:
        own = {picture.with_suffix("") for picture in pictures}
        pictures = [picture for picture in pictures if _of_map(picture) not in own]
    if not pictures:
        raise UserError(f"{args.input} has no pictures: give a folder of photographs")
    kept, failed = 0, 0
    for picture in tqdm(pictures, desc="edge maps", unit="picture", disable=None):
        name = f"{picture.stem}{BESIDE if beside else ''}.png"
        target = args.output / picture.relative_to(args.input).parent / name
        if target.exists() and not args.overwrite:
            kept += 1
            continue
        try:
            content = edge_map_png(picture, generator, invert=args.invert)
        except UserError as error:
            failed += 1
            log.warning("left out: %s", error)
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(target.parent, error) from error
        write_whole(target, content)
    made = len(pictures) - kept - failed
    log.info("%s: %d maps made, %d kept as they were, %d pictures left out", args.output, made, kept, failed)
    return 1 if failed else 0


def edge_map_png(picture: Path, generator: "EdgeMapGenerator", *, invert: bool = False) -> bytes:
    """The map of a picture as a grey PNG file.

    Raises:
        UserError: the picture cannot be read.
    """
    import numpy as np
    from PIL import Image

    from basicsr.utils.img_util import read_rgb_01

    edges_01 = generator.generate_from_numpy(read_rgb_01(picture), "RGB")[..., 0]
    png = io.BytesIO()
    Image.fromarray(np.uint8(255) * (edges_01 == (0 if invert else 1)).astype(np.uint8)).save(png, "PNG")
    return png.getvalue()


def _of_map(file: Path) -> Path | None:
    """The picture, without its suffix, that a file beside it would be the map of."""
    return file.with_name(file.stem.removesuffix(BESIDE)) if file.stem.endswith(BESIDE) else None
