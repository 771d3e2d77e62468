"""The demo: fine-tune the small upscaler with the edge loss, and show before and after on one page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.data.pair_pool import Pair
from basicsr.metrics.measure import measure
from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from basicsr.utils.ranges import from_pm1, to_u8
from basicsr.utils.rng import torch_rng
from ldm.config import Config, load_config
from ldm.evaluation.report import charts
from ldm.evaluation.report.charts import Series, in_words
from ldm.evaluation.report.gallery import data_uri
from ldm.evaluation.report.statistics import CONFIDENCE, Interval, student_mean
from ldm.models.build import build_model
from ldm.models.diffusion.sampling import Sampling
from ldm.study.judging import frame_words, pair_of, restored_01
from ldm.study.report import page_environment
from ldm.training.cli import main as train
from ldm.training.loggers import read_metrics

log = logging.getLogger(__name__)

FRAMES = (1, 2)  # seeds of crop and degradation: so many frames of each photograph
SIDE = 192  # pixels of a frame
BORDER = 4  # pixels that are not measured
METRICS = {"loss_edge": ("loss_edge", 5, False), "edge_f1": ("edge F1", 3, True), "psnr_y": ("PSNR, dB", 2, True)}
CURVES = {
    "the edge loss on a fixed batch of held-out frames": "val/loss_edge_fixed",
    "the main loss on held-out frames": "val/loss_simple",
}


@dataclass(frozen=True)
class Change:
    """Of one metric from before to after, over photographs."""

    label: str
    decimals: int
    before: float
    after: float
    difference: Interval
    better: bool | None  # None where the interval holds 0

    @property
    def words(self) -> str:
        """Such as `edge F1 0.552 → 0.571 (+0.019, −0.004 to +0.042)`."""
        low, high = (f"{value:+.{self.decimals}f}".replace("-", "−") for value in self.difference[1:3])
        mean = f"{self.difference.mean:+.{self.decimals}f}".replace("-", "−")
        figures = f"{self.before:.{self.decimals}f} → {self.after:.{self.decimals}f}"
        return f"{self.label} {figures} ({mean}, {low} to {high})"


@dataclass(frozen=True)
class Judged:
    """What a model makes of the held-out frames."""

    pictures: list[Tensor]  # (3, H, W) in [0, 1]
    scores: list[dict[str, float]]


def demo(config_file: Path, words: Sequence[str] = ()) -> Path:
    """Train as the config says, judge before and after, and write demo.html into the run's folder; returns that.

    Raises:
        UserError: the training failed, which has said why, or was stopped.
    """
    config = load_config([config_file], words)
    folder = Path("logs")
    known = set(folder.glob(f"*_{config_file.stem}"))
    if train(["--base", str(config_file), "--logger", "csv", "--no-test", *words]):
        raise UserError("the demo's training did not end: its own message says why")
    (run,) = set(folder.glob(f"*_{config_file.stem}")) - known
    logging.getLogger("ldm.models").setLevel(logging.WARNING)  # what is read again has been told of
    pictures = config.get("data.params.validation.params.gt_path")
    framed = load_config([config_file], [*words, *frame_words(pictures, SIDE)])
    pairs = [pair_of(framed, seed, torch.device("cpu")) for seed in FRAMES]
    trained = load_config([config_file], [*words, f"model.params.ckpt_path={run / 'checkpoints/last.ckpt'}"])
    before, after = (judge(each, pairs, name) for each, name in ((config, "before"), (trained, "after")))
    changes = list(changed(photographs(pairs), before.scores, after.scores))
    write_whole(run / "demo.html", page(config, pairs, before, after, changes, read_metrics(run / "metrics.csv")))
    log.info("%s", verdict(config, changes, len(set(photographs(pairs)))))
    return run / "demo.html"


@torch.no_grad()
def judge(config: Config, pairs: Sequence[Pair], name: str) -> Judged:
    """Sample every frame in a few steps, and measure it."""
    model = build_model(config).eval()
    pictures: list[Tensor] = []
    scores: list[dict[str, float]] = []
    for pair in tqdm(pairs, desc=f"held-out frames, {name}"):
        samples_01 = restored_01(model, pair, Sampling(steps_of(config)), torch_rng("cpu", "demo"))
        for index, (mine, gt) in enumerate(zip(samples_01, from_pm1(pair.gt_pm1), strict=True)):
            found = measure(mine, gt, BORDER) | model.edge_probe(pair[index : index + 1])
            scores.append({key: found[key] for key in METRICS})
            pictures.append(mine)
    return Judged(pictures, scores)


def steps_of(config: Config) -> int:
    """In how many steps to sample: as many as are trained on, 4 where all are."""
    return int(config.get("model.params.time_replace") or 4)


def photographs(pairs: Sequence[Pair]) -> list[str]:
    """The photograph that each frame is of."""
    return [Path(path).stem for pair in pairs for path in pair.paths]


def changed(
    names: Sequence[str], before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> list[Change]:
    """Frames of one photograph are no independent evidence: their mean counts once."""
    changes = []
    for key, (label, decimals, higher) in METRICS.items():
        means = [
            [sum(scores[i][key] for i in own) / len(own) for scores in (before, after)]
            for own in ([i for i, each in enumerate(names) if each == name] for name in dict.fromkeys(names))
        ]
        difference = student_mean([last - first for first, last in means])
        outside = difference.pictures > 1 and (difference.low > 0 or difference.high < 0)
        better = (difference.mean > 0) == higher if outside else None
        first, last = (sum(values) / len(values) for values in zip(*means, strict=True))
        changes.append(Change(label, decimals, first, last, difference, better))
    return changes


def verdict(config: Config, changes: Sequence[Change], count: int) -> str:
    """One line: what changed, and whether that is outside chance."""
    clear = [f"{each.label} {'better' if each.better else 'worse'}" for each in changes if each.better is not None]
    unclear = [each.label for each in changes if each.better is None]
    parts = [f"outside chance: {', '.join(clear)}"] if clear else []
    parts += [f"not told apart from chance: {', '.join(unclear)}"] if unclear else []
    return (
        f"After {config.get('lightning.trainer.max_steps')} steps with the edge loss, on {count} held-out photographs: "
        f"{'; '.join(each.words for each in changes)}. By {CONFIDENCE} % intervals over photographs, "
        f"{'; '.join(parts)}. Whether the edges did it, or any further training: scripts/edge_experiment.py"
    )


def page(
    config: Config,
    pairs: Sequence[Pair],
    before: Judged,
    after: Judged,
    changes: Sequence[Change],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """The page as one HTML file that needs nothing else."""
    return (
        page_environment()
        .get_template("demo.html")
        .render(
            verdict=verdict(config, changes, len(set(photographs(pairs)))),
            weight=config.get("model.params.edge_loss_weight"),
            steps=steps_of(config),
            pictures=_slider(pairs, before, after),
            rows=[(each, _bar(each), in_words(each.difference, each.decimals, "+")) for each in changes],
            plots={label: plot for label, key in CURVES.items() if (plot := _plot(rows, key))},
        )
    )


def _slider(pairs: Sequence[Pair], before: Judged, after: Judged) -> dict[str, dict[str, str]]:
    shown = {}
    truths = [each for pair in pairs for each in from_pm1(pair.gt_pm1)]
    degraded = [each for pair in pairs for each in from_pm1(pair.lq_pm1)]
    for index, name in enumerate(photographs(pairs)):
        versions = {"degraded": degraded, "before": before.pictures, "after": after.pictures, "true": truths}
        shown[f"{name}, frame {index // len(pairs[0]) + 1}"] = {
            label: data_uri(to_u8(images[index]).permute(1, 2, 0).numpy(), "JPEG") for label, images in versions.items()
        }
    return shown


def _bar(change: Change) -> charts.Bar:
    interval = change.difference
    return charts.interval_bar(interval, max(abs(interval.low), abs(interval.high)), better=change.better)


def _plot(rows: Sequence[Mapping[str, Any]], key: str) -> charts.Plot | None:
    points = tuple((float(row["step"]), Interval(row[key], row[key], row[key], 1)) for row in rows if key in row)
    return charts.curves([Series(key, charts.colour(0), points)], "step", 6) if len(points) > 1 else None
