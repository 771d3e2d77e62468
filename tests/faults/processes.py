"""What two processes make of one training: `python -m faults.processes FOLDER` tells it as JSON."""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from faults.kills import Stage, wait
from PIL import Image

from ldm.config import load_config
from ldm.training import train

PAIRS = {
    "target": "basicsr.data.paired_image_dataset.PairedImageDataset",
    "params": {"dataroot_gt": "pictures", "dataroot_lq": "pictures", "gt_size": 16},
}


def doubled(folder: Path) -> float:
    """The largest difference between the weights of two processes and of one with the doubled batch."""
    weights = []
    for processes, batch in ((1, 2), (2, 1)):
        stage = Stage(folder / f"doubled{processes}", processes, 6)
        values = load_config([stage.folder / "toy.yaml"]).values
        values["data"]["params"] |= {"train": PAIRS, "validation": None, "batch_size": batch}
        values["model"]["params"] = {"noise": 0.0}
        (stage.folder / "toy.yaml").write_text(yaml.safe_dump(values))
        wait(stage.start("a"), 100.0)
        weights.append(stage.outcome("a")[0]["state_dict"])
    return max(float((value - weights[1][key]).abs().max()) for key, value in weights[0].items())


def uneven(folder: Path) -> list[int]:
    """The exit statuses, and the steps, of two processes with five pictures: two batches each, and one left out."""
    stage = Stage(folder / "uneven", 2, 8)
    Image.open(stage.folder / "pictures" / "0.png").save(stage.folder / "pictures" / "fifth.png")
    ended = wait(stage.start("a"), 100.0)
    return [*ended.values(), stage.outcome("a")[0]["global_step"], stage.outcome("a")[0]["epoch"]]


def failing(folder: Path, rank: int) -> tuple[list[int], float, str]:
    """The exit statuses where one process breaks down, the seconds from the first end to the last, and what is said."""
    stage = Stage(folder / f"failing{rank}", 2, 8)
    children = stage.start("a", f"model.params.fails_on={rank}")
    ended: dict[int, int] = {}
    while not ended:
        ended = wait(children, 0.01)
    first = time.monotonic()
    ended |= wait([child for child in children if child not in ended], 100.0)
    return [ended[child] for child in children], time.monotonic() - first, (stage.folder / "log-0.txt").read_text()


def main() -> int:
    torch.set_num_threads(1)
    train.quiet_lightning()
    folder = Path(sys.argv[1])
    told = {"doubled": doubled(folder), "uneven": uneven(folder), "failing": [failing(folder, rank) for rank in (0, 1)]}
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
