"""What are edges as a condition worth? The demo's upscaler is taught to see them, and told them, or not.

    python scripts/demo_photos.py && python scripts/edge_condition_study.py [key.path=value ...]

Three arms are trained from the same weights, each with several seeds: `plain` sees no edges; `lq` sees those of the LQ
picture, as a real use can; `gt_oracle` sees those of the true picture. Then evaluate restores the middle of each
held-out photograph with every run, those that see edges told the edges of the LQ picture, none, a blank sheet (dummy),
and the true picture's (gt, an oracle). What gt gains over edges is the leak: no user has these edges.

Finished runs are kept in --out and not repeated: the same command goes on after an interruption. It ends with means and
95 % intervals (Student's t over seeds), differences included, in table.txt, and with evaluate's page in report/.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from basicsr.metrics.table import METRICS
from basicsr.utils import checks
from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from ldm.config import check_paths, load_config
from ldm.console import OneLineParser, path_argument
from ldm.evaluation.measure import cli as evaluate
from ldm.evaluation.report.statistics import student_half_width

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "configs/demo/edge_condition.yaml"
SIDE = 192  # pixels of a held-out photograph
NO_EDGES = ["model.params.edge_condition=null", "model.params.structcond_stage_config.params.in_channels=4"]
ARMS = {"lq": [], "gt_oracle": ["model.params.edge_condition.source=gt"], "plain": NO_EDGES}
CONDITIONS = ("none", "dummy", "edges", "gt")
SHOWN = ("edge_f1", "edge_psnr", "psnr_y")
# The second minus the first, (arm, condition) each.
DIFFERENCES = {
    "edges from LQ against the model without": (("plain", ""), ("lq", "edges")),
    "the same model told edges from LQ against none": (("lq", "none"), ("lq", "edges")),
    "told a blank sheet against none": (("lq", "none"), ("lq", "dummy")),
    "the oracle, trained and told GT, against the model without": (("plain", ""), ("gt_oracle", "gt")),
    "THE LEAK: the oracle told GT against told what a user has": (("gt_oracle", "edges"), ("gt_oracle", "gt")),
    "trained with GT and told LQ against the model without": (("plain", ""), ("gt_oracle", "edges")),
}
Values = dict[tuple[str, str], dict[int, dict[str, float]]]  # (arm, condition) -> seed -> metric -> mean over pictures


def cut_pictures(photographs: Path, folder: Path) -> None:
    """Write the middle of every photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(photographs.glob("*.png")):
        photo = Image.open(file)
        left, top = (photo.width - SIDE) // 2, (photo.height - SIDE) // 2
        photo.crop((left, top, left + SIDE, top + SIDE)).save(folder / file.name)


def train(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """An arm's run, trained where it is not there yet; returns its folder."""
    folder: Path = args.out / "runs" / f"{arm}-{seed}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished_", dir=args.out) as unfinished:
        command = [sys.executable, str(ROOT / "main.py"), "--base", str(BASE), *ARMS[arm], *args.words,
                   "--seed", str(seed), "--max_steps", str(args.steps), "--name", folder.name,
                   "--logger", "csv", "--logdir", unfinished, "--limit_val_batches", "0",
                   "lightning.callbacks=null"]  # fmt: skip
        log_file = args.out / f"{folder.name}.log"
        with log_file.open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise UserError(f"training of arm {arm} with seed {seed} failed: see {log_file}")
        (run,) = Path(unfinished).iterdir()
        run.rename(folder)
    return folder


def measure(args: argparse.Namespace, runs: Sequence[Path]) -> Values:
    """Every run under every condition, by `evaluate`, which keeps what is measured already."""
    words = [word for run in runs for word in ("--run", str(run))]
    words += ["--data", str(args.out / "pictures"), "--out", str(args.out / "report"), "--checkpoints", "last"]
    words += ["--conditions", ",".join(CONDITIONS), "--steps", str(args.sampling_steps), "--sampler", "ddim"]
    if evaluate.main(words):
        raise UserError(f"the evaluation failed; the runs are kept in {args.out}")
    pictures: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    with (args.out / "report/results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            arm, _, seed = row["run"].rpartition("-")
            pictures.setdefault((arm, row["condition"], int(seed)), []).append(row)
    values: Values = {}
    for (arm, condition, seed), rows in pictures.items():
        means = {name: statistics.mean(float(row[name]) for row in rows if row[name]) for name in SHOWN}
        values.setdefault((arm, condition), {})[seed] = means
    return values


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:{sign}.4f} (one seed)"
    return f"{statistics.mean(values):{sign}.4f} ± {student_half_width(values):.4f}"


def table(values: Values) -> str:
    """Means by arm and condition, and the differences that the study is about, paired by seed."""
    head = "".join(f"{METRICS[name].label:>24}" for name in SHOWN)
    lines = [f"{'trained':12}{'told':10}{head}"]
    for (arm, condition), by_seed in values.items():
        cells = (interval([means[name] for means in by_seed.values()]) for name in SHOWN)
        lines.append(f"{arm:12}{condition or '-':10}" + "".join(f"{cell:>24}" for cell in cells))
    for words, (first, second) in DIFFERENCES.items():
        if first not in values or second not in values:
            continue
        lines += ["", words]
        for name in SHOWN:
            change = [means[name] - values[first][seed][name] for seed, means in values[second].items()]
            lines.append(f"  {METRICS[name].label:16}{interval(change, '+')}")
    return "\n".join(lines)


def check_same_settings(args: argparse.Namespace) -> None:
    """Raise UserError where --out holds runs of other settings."""
    file, settings = args.out / "settings.txt", f"steps {args.steps}\n{' '.join(args.words)}\n"
    if file.exists() and file.read_text() != settings:
        raise UserError(f"{args.out} holds runs of other settings ({file.name}): choose another --out")
    write_whole(file, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after bad input, 130 after Ctrl-C."""
    parser = OneLineParser("edge_condition_study.py", description=__doc__)
    parser.add_argument("--out", type=path_argument, default=Path("logs/edge_condition_study"))
    parser.add_argument("--data", type=path_argument, default=Path("data/demo/validation"), help="held-out photographs")
    parser.add_argument("--steps", type=int, default=80, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sampling-steps", type=int, default=4, help="DDIM steps of a sample")
    parser.add_argument("words", nargs="*", help="overrides for all arms")
    try:
        args = parser.parse_args(argv)
        checks.whole_number("--seeds", args.seeds, 1)
        check_same_settings(args)
        check_paths(load_config([BASE], args.words))
        cut_pictures(args.data, args.out / "pictures")
        todo = [(arm, seed) for arm in ARMS for seed in range(1, args.seeds + 1)]
        runs = [train(args, arm, seed) for arm, seed in tqdm(todo, desc="runs")]
        text = table(measure(args, runs))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    write_whole(args.out / "table.txt", f"{text}\n")
    sys.stdout.write(f"{text}\n\nin {args.out}: table.txt, report/report.html, and a log for each run\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
