"""Where restored pictures come from: a run's checkpoint, a folder of somebody else's, or plain enlarging."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from basicsr.utils.errors import FieldError
from ldm.evaluation.measure.pictures import PicturePair, file_identity, pictures_by_name
from ldm.evaluation.measure.runs import Checkpoint, TrainedRun
from ldm.evaluation.report.summary import CONDITIONS, Settings

BICUBIC = "bicubic"
Told = Literal["auto", "lq", "none", "dummy", "file", "gt"]


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, under a condition where it sees edges: a key of `CONDITIONS`."""

    run: TrainedRun
    checkpoint: Checkpoint
    condition: str = ""

    @property
    def group(self) -> str:
        return self.run.name if self.condition else ""

    @property
    def name(self) -> str:
        return f"{self.run.name} [{self.condition}]" if self.condition else self.run.name

    @property
    def label(self) -> str:
        return f"{self.run.label}, {CONDITIONS[self.condition]}" if self.condition else self.run.label

    @property
    def edge_loss_weight(self) -> float | str | None:
        return self.run.edge_loss_weight

    @property
    def step(self) -> int | None:
        return self.checkpoint.step

    @property
    def path(self) -> str:
        return str(self.checkpoint.path)

    @property
    def place(self) -> Path:
        """Of what is computed, below the folder of all restored pictures."""
        told = {"": "", "gt": "-gt-oracle"}.get(self.condition, f"-{self.condition}")
        return Path(self.run.name, f"step{self.checkpoint.step:06d}{told}")

    @property
    def edges(self) -> Told:
        """What the model is told; `gt` is the true picture's edges.

        Where edges become a picture, those of the true one are the input itself, and no leak.
        """
        if self.condition == "edges":
            return "gt" if self.run.edge_use == "alone" else "lq"
        return cast(Told, self.condition or "auto")

    def key(self, picture: PicturePair, settings: Settings) -> str:
        """All that a restored picture depends on."""
        how = (settings.steps, settings.sampler, settings.seed, settings.sf)
        model = self.run.config.get("model")
        told = {"gt": picture.gt_identity, "file": picture.edges_identity}.get(self.edges, "")
        condition = (self.edges, told) if self.condition else ()
        return repr((self.checkpoint.identity, model, picture.lq_identity, picture.name, how, *condition))


@dataclass(frozen=True)
class Bicubic:
    """The degraded pictures themselves, enlarged where they are small."""

    name: str = BICUBIC
    label: str = BICUBIC
    edge_loss_weight: None = None
    condition: str = ""
    group: str = ""
    step: None = None
    path: str = ""
    place: Path = Path(BICUBIC)

    def key(self, picture: PicturePair, settings: Settings) -> str:
        """All that an enlarged picture depends on."""
        return repr((BICUBIC, picture.lq_identity, settings.sf))


@dataclass(frozen=True)
class Folder:
    """Pictures that were restored elsewhere, by the name of the true one."""

    name: str  # as it was given
    files: dict[str, Path]
    identities: dict[str, str]
    edge_loss_weight: None = None
    condition: str = ""
    group: str = ""
    step: None = None

    @property
    def path(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        return Path(self.name).resolve().name

    @property
    def place(self) -> Path:
        return Path(self.label)

    def key(self, picture: PicturePair, settings: Settings) -> str:
        """The file itself; its pictures depend on nothing else that is known here."""
        return repr(("given", self.identities[picture.name]))


Source = Trained | Bicubic | Folder


def open_arms(words: Sequence[str], names: Sequence[str], pictures: Sequence[PicturePair]) -> list[Bicubic | Folder]:
    """The arms beside the runs.

    Args:
        words: each `bicubic`, a folder, or several of these between commas.
        names: of the runs, which an arm may not have too.
        pictures: the true ones, of whose names a folder must have at least one.

    Raises:
        FieldError: no such folder, no picture of a known name in it, a name that is taken, or `bicubic` without
            degraded pictures.
    """
    arms: list[Bicubic | Folder] = []
    for word in (part for given in words for part in ([given] if Path(given).is_dir() else given.split(","))):
        if word in (*names, *(arm.name for arm in arms)):
            raise FieldError("also", f"{word}: another arm or run is called so too; give each once, or rename one")
        arms.append(_bicubic(pictures) if word == BICUBIC else _folder(word, pictures))
    return arms


def missing_partners(arm: Bicubic | Folder, pictures: Sequence[PicturePair]) -> list[str]:
    """A line where pictures have no partner in an arm's folder."""
    missing = [each.name for each in pictures if isinstance(arm, Folder) and each.name not in arm.files]
    if not missing:
        return []
    return [f"{arm.name} has no picture for {len(missing)} of {len(pictures)}: {', '.join(missing)}"]


def _bicubic(pictures: Sequence[PicturePair]) -> Bicubic:
    if any(picture.lq is None for picture in pictures):
        raise FieldError(
            "also", f"{BICUBIC} enlarges degraded pictures: give --lq, or a run whose degradation makes them"
        )
    return Bicubic()


def _folder(word: str, pictures: Sequence[PicturePair]) -> Folder:
    found = pictures_by_name(word, "also")
    files = {each.name: found[name] for each in pictures for name in _result_names(each) if name in found}
    if not files:
        raise FieldError(
            "also",
            f"{word}: none of its pictures is called like a true one, such as {pictures[0].name!r}; "
            "results must have the names of their originals",
        )
    return Folder(word, files, {name: file_identity(file) for name, file in files.items()})


def _result_names(picture: PicturePair) -> tuple[str, ...]:
    """What a result may be called, without its suffix; of cat.jpg, the upscaler makes cat.jpg.png."""
    return (f"{picture.name}{picture.lq.suffix}", picture.name) if picture.lq else (picture.name,)
