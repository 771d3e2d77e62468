"""From a config, a checkpoint and pictures to the files that CFW trains on: listed, shared out, sampled, summed up."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest, write_whole
from basicsr.utils.retries import check_retries
from ldm.config import Config, load_config
from ldm.inference.cfw_data import Degraded, Job, SampleWriter, list_jobs, split
from ldm.inference.choice import checkpoint_of, choose
from ldm.inference.manifest import Manifest
from ldm.inference.networks import Networks
from ldm.inference.sharing import Team
from ldm.models.diffusion.sampling import Sampling

log = logging.getLogger(__name__)
SUMMARY = "summary.json"


@dataclass
class Counts:
    """What became of the samples."""

    made: int = 0
    there_before: int = 0
    not_finite: list[str] = field(default_factory=list)  # a line each
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def sum(cls, parts: Sequence["Counts"]) -> "Counts":
        """Of all processes."""
        total = cls()
        for part in parts:
            total.made += part.made
            total.there_before += part.there_before
            total.not_finite += part.not_finite
            total.unreadable += part.unreadable
        return total


def run(args: argparse.Namespace) -> int:
    """List, share, sample, sum up."""
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            raise FieldError(name, f"is {getattr(args, name)}: give 1 or more")
    sampling = Sampling(args.steps, args.sampler)
    checks.whole_number("seed", args.seed, 0)
    check_retries(args.retries)
    team = Team.of(args.devices, args.nodes, args.device)
    if not team.first:
        logging.disable(logging.WARNING)
    manifest = Manifest(args.output, team.rank) if args.manifest else None
    jobs, asked_for = team.agreed(team.together(lambda: _jobs(args, manifest) if team.first else ([], 0)))
    base, ckpt, _ = team.together(lambda: choose(args.base, checkpoint_of(args), args.variant))
    config = base if isinstance(base, Config) else load_config([base])
    networks = team.together(lambda: Networks.load(base, ckpt, None, str(team.device), args.precision))
    settings = _settings(config, networks, args)
    team.together(lambda: _check_former(args.output / SUMMARY, settings))
    if manifest:
        made_from = digest(json.dumps(settings, sort_keys=True))
        team.together(lambda: manifest.check(made_from))
    if team.first:
        _write(args.output, settings)
    started = time.monotonic()
    share = team.share(jobs)
    missing = [job for job in share if not job.done(args.output)]
    note = manifest.done if manifest else _forget
    for job in set(share).difference(missing):
        note(job.name)
    dataset = Degraded(missing, config, args.input[0], args.seed, args.retries)
    counts = _make(dataset, SampleWriter(networks, sampling, args.seed, args.output), team, args, note)
    counts.there_before = len(share) - len(missing)
    parts = team.gathered(counts)
    if not team.first:
        return 0
    total = Counts.sum(parts)
    total.there_before += asked_for - len(jobs)
    result: dict[str, Any] = {"processes": team.size, "seconds": round(time.monotonic() - started, 1)}
    return _sum_up(args.output, total, asked_for, settings, result, manifest)


def _sum_up(
    output: Path,
    total: Counts,
    asked_for: int,
    settings: dict[str, Any],
    result: dict[str, Any],
    manifest: Manifest | None,
) -> int:
    """Write and tell what became of all samples; returns the exit status."""
    samples, not_finite, unreadable = total.there_before + total.made, len(total.not_finite), len(total.unreadable)
    speed = round(total.made / max(result["seconds"], 1e-9), 3)
    told = {"samples": samples, "asked_for": asked_for, "made_now": total.made}
    told |= {"not_finite": not_finite, "unreadable": unreadable, **result, "samples_per_second": speed}
    _write(output, settings, told)
    log.info("%s: %d samples of %d, %d of them new", output, samples, asked_for, total.made)
    log.info("%.3g samples/s; %d not finite, %d unreadable", speed, not_finite, unreadable)
    if manifest and (file := manifest.failed([*total.unreadable, *total.not_finite])):
        log.info("what was left out: %s", file)
    return 1 if not_finite or unreadable else 0


def _jobs(args: argparse.Namespace, manifest: Manifest | None) -> tuple[list[Job], int]:
    """The samples that are not known to be there, and how many are asked for."""
    if manifest is None:
        jobs = list_jobs(args.input, args.repeats)
        return jobs, len(jobs)
    question = [*map(str, args.input), str(Path.cwd()), args.repeats]
    listed = manifest.jobs(
        question,
        lambda through: [[job.name, str(job.picture)] for job in list_jobs(args.input, args.repeats, through)],
    )
    left = manifest.unfinished(listed)
    log.info("%s: %d samples, %d of them to do", manifest.folder, len(listed), len(left))
    return [Job(Path(picture), name) for name, picture in left], len(listed)


def _forget(name: str) -> None:
    """Where no manifest is kept."""


def _make(
    dataset: Degraded, writer: SampleWriter, team: Team, args: argparse.Namespace, note: Callable[[str], None]
) -> Counts:
    """This process's share. The bar shows all processes, taking the others to be as quick as this one.

    note: is told the name of each sample whose files are whole.
    """
    counts = Counts()
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    bar = tqdm(total=len(dataset) * team.size, desc="samples", unit="sample", mininterval=often, disable=not team.first)
    with bar:
        for batch in dataset.batches(args.batch, args.workers):
            good, bad = split(batch)
            counts.unreadable += bad
            for reason in bad:
                log.warning("left out: %s", reason)
            bar.update(len(bad) * team.size)
            for job, finite in writer.write(good):
                if finite:
                    counts.made += 1
                    note(job.name)
                else:
                    counts.not_finite.append(f"the sample {job.name} is not finite")
                    log.warning("left out: %s", counts.not_finite[-1])
                bar.update(team.size)
    return counts


def _settings(config: Config, networks: Networks, args: argparse.Namespace) -> dict[str, Any]:
    """All that decides what a sample of a given name holds."""
    recipe = [config.get(key) for key in ("degradation", "sf", "model.params.use_usm", "data.params.train")]
    options: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "sampler", "seed")}
    options["precision"] = networks.precision  # what auto came to
    return options | {"weights": networks.identity, "degradation": digest(json.dumps(recipe, sort_keys=True))}


def _check_former(file: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where a folder holds samples made otherwise."""
    if not file.is_file():
        return
    try:
        former = json.loads(file.read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a summary of this program's: choose another --output") from error
    differ = [name for name in settings if former.get(name) != settings[name]]
    if differ:
        told = ", ".join(f"{name} {former.get(name)} (now {settings[name]})" for name in differ)
        raise UserError(f"--output {file.parent} holds samples made with {told}: choose another folder")


def _write(folder: Path, settings: dict[str, Any], result: dict[str, Any] | None = None) -> None:
    write_whole(folder / SUMMARY, json.dumps({"settings": settings, **(result or {})}, indent=2) + "\n")
