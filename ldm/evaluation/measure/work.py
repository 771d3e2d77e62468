"""Computing what is missing, on one process or several."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from tqdm import tqdm

from basicsr.metrics.measure import Lpips
from basicsr.utils.errors import UserError
from basicsr.utils.files import OutputError
from basicsr.utils.retries import with_retries
from ldm.evaluation.measure.pictures import usable
from ldm.evaluation.measure.records import Record
from ldm.evaluation.measure.restore import load_networks
from ldm.evaluation.measure.runs import Checkpoint, TrainedRun
from ldm.evaluation.measure.sources import Folder, Trained
from ldm.inference.networks import Networks
from ldm.inference.sharing import Team

Weights = tuple[TrainedRun, Checkpoint]  # which may be restored with under several conditions
# Tells of one picture that is done (None) or of a checkpoint that cannot be used (why).
News = Callable[[str | None], None]


def compute(missing: Sequence[Record], team: Team, retries: int = 0) -> list[str]:
    """Restore and measure what is missing; each process of the team does its share, and all wait for the last one.

    Noise is a function of seed and picture, so who computes what changes nothing. retries: of a picture whose files
    cannot be read, see `with_retries`.

    Returns:
        A line for each checkpoint that cannot be used: it is gone, was written anew, or does not fit its config.

    Raises:
        UserError: LPIPS is asked for and not to be had.
    """
    if not missing:
        return []
    team.together(lambda: _lpips_of(missing))  # to fail before anything is computed
    problems: list[str] = []
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    mine = team.share(missing)
    # The first process shows how far all are, taking the others to be as quick.
    scale = team.size if team.size > 1 else False
    bar = tqdm(
        total=len(mine), desc="pictures", unit="picture", mininterval=often, unit_scale=scale, disable=not team.first
    )
    with bar:

        def news(problem: str | None) -> None:
            if problem is None:
                bar.update()
            else:
                problems.append(problem)

        _work(mine, team.device, news, retries)
    return list(dict.fromkeys(problem for part in team.gathered(problems) for problem in part))


def _lpips_of(records: Sequence[Record]) -> Lpips | None:
    """The metric that the records' settings ask for, if they do.

    Raises:
        FieldError: its weights are missing or unfit.
    """
    settings = records[0].settings if records else None
    return Lpips(settings.lpips, settings.lpips_weights) if settings and settings.lpips else None


def _work(records: Sequence[Record], device: torch.device, news: News, retries: int) -> None:
    """Restore and measure these records, which are sorted by checkpoint."""
    lpips = _lpips_of(records)
    loaded: Weights | None = None
    networks: Networks | None = None
    spoilt: Weights | None = None
    for record in records:
        source = record.source
        weights = (source.run, source.checkpoint) if isinstance(source, Trained) else None
        if weights is not None and weights == spoilt:
            continue
        missing = not isinstance(source, Folder) and not usable(record.restored)
        try:
            if missing and weights is not None and weights != loaded:
                networks = None  # the memory of the one before is needed
                spoilt = weights  # unless it loads
                networks = load_networks(*weights, device)
                loaded, spoilt = weights, None
        except UserError as error:
            news(str(error))
            continue
        try:
            if missing:
                with_retries(partial(record.restore, networks if isinstance(source, Trained) else None), retries)
            with_retries(partial(record.measure, lpips), retries)
            news(None)
        except OutputError:
            raise
        except UserError as error:
            news(f"{record.picture.gt}: {error}")
