"""From a config, a checkpoint and pictures to the files that CFW trains on: listed, shared out, sampled, summed up."""

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest, write_whole
from ldm.config import Config, load_config
from ldm.inference.cfw_data import Degraded, SampleWriter, list_jobs, split
from ldm.inference.choice import checkpoint_of, choose
from ldm.inference.networks import Networks
from ldm.inference.sharing import Team
from ldm.models.diffusion.sampling import Sampling

log = logging.getLogger(__name__)
SUMMARY = "summary.json"


@dataclass
class Counts:
    """What became of the samples."""

    made: int = 0
    not_finite: int = 0
    unreadable: int = 0


def run(args: argparse.Namespace) -> int:
    """List, share, sample, sum up."""
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            raise FieldError(name, f"is {getattr(args, name)}: give 1 or more")
    sampling = Sampling(args.steps, args.sampler)
    checks.whole_number("seed", args.seed, 0)
    jobs = list_jobs(args.input, args.repeats)
    base, ckpt, _ = choose(args.base, checkpoint_of(args), args.variant)
    config = base if isinstance(base, Config) else load_config([base])
    team = Team.of(args.devices, args.nodes, args.device)
    if not team.first:
        logging.disable(logging.WARNING)
    networks = team.together(lambda: Networks.load(base, ckpt, None, str(team.device), args.precision))
    settings = _settings(config, networks, args)
    team.together(lambda: _check_former(args.output / SUMMARY, settings))
    if team.first:
        _write(args.output, settings)
    started = time.monotonic()
    missing = [job for job in team.share(jobs) if not job.done(args.output)]
    dataset = Degraded(missing, config, args.input[0], args.seed)
    counts = _make(dataset, SampleWriter(networks, sampling, args.seed, args.output), team, args)
    made, not_finite, unreadable = map(int, team.sums(counts.made, counts.not_finite, counts.unreadable))
    if team.first:
        seconds = time.monotonic() - started
        result: dict[str, float] = {
            "samples": sum(job.done(args.output) for job in jobs),
            "asked_for": len(jobs),
            "made_now": made,
        }
        result |= {"not_finite": not_finite, "unreadable": unreadable, "processes": team.size}
        result |= {"seconds": round(seconds, 1), "samples_per_second": round(made / max(seconds, 1e-9), 3)}
        _write(args.output, settings, result)
        log.info("%s: %d samples of %d, %d of them new", args.output, result["samples"], len(jobs), made)
        log.info("%.3g samples/s; %d not finite, %d unreadable", result["samples_per_second"], not_finite, unreadable)
    return 1 if team.first and (not_finite or unreadable) else 0


def _make(dataset: Degraded, writer: SampleWriter, team: Team, args: argparse.Namespace) -> Counts:
    """This process's share. The bar shows all processes, taking the others to be as quick as this one."""
    counts = Counts()
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    bar = tqdm(total=len(dataset) * team.size, desc="samples", unit="sample", mininterval=often, disable=not team.first)
    with bar:
        for batch in dataset.batches(args.batch, args.workers):
            good, bad = split(batch)
            for reason in bad:
                counts.unreadable += 1
                log.warning("left out: %s", reason)
            bar.update(len(bad) * team.size)
            for job, finite in writer.write(good):
                counts.made += finite
                counts.not_finite += not finite
                if not finite:
                    log.warning("left out: the sample %s is not finite", job.name)
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
