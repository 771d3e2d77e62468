"""Weights on the Hugging Face hub, by `hf://owner/name[/file or folder][@revision]`, with the package huggingface_hub.

Its cache, its login and its environment variables (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME, HF_TOKEN) are used as they
are; nothing here sees a token.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from basicsr.utils.errors import UserError, closest, first_line
from ldm.models.formats.diffusers_folder import ADDED, PARTS, shard_names, weights_in

log = logging.getLogger(__name__)

# A Path makes one slash of two.
PATTERN = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>[^@]+?))?/?(?:@(?P<revision>.+))?")
WEIGHTS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
MESSAGE = "Weights of StableSR-Edge"
CONFIG = "config.json"  # of a page that this project wrote
LFS_SHA256 = re.compile("[0-9a-f]{64}")  # the name of a large file in the cache; small ones have 40 digits


@dataclass(frozen=True)
class Reference:
    """A place on the hub; `path`, of a file or a folder, is empty for all of a model's page."""

    repo: str
    path: str
    revision: str | None

    def __str__(self) -> str:
        path, revision = f"/{self.path}" if self.path else "", f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{path}{revision}"


def is_reference(source: str | Path) -> bool:
    """Whether it is meant to be a place on the hub."""
    return str(source).startswith("hf:/")


def parse(text: str) -> Reference:
    """The parts of a reference. Raises UserError for what is none."""
    found = PATTERN.fullmatch(text)
    if not found or ".." in PurePosixPath(found["path"] or "").parts:
        raise UserError(f"{text} is no place on the hub: write hf://OWNER/NAME, hf://OWNER/NAME/FILE or …@REVISION")
    return Reference(found["repo"], found["path"] or "", found["revision"])


@cache
def fetch(text: str) -> Path:
    """The file or folder that a reference names, in the hub's cache on this machine; what is not there is downloaded.

    Of a page or folder in diffusers' layout only the weights that are read are fetched. A new file's SHA-256 is
    compared with the one that the hub tells, and logged. Interrupted downloads go on where they were.

    Raises:
        UserError: no such page, file or revision, no permission, no connection, another checksum, no huggingface_hub.
    """
    where = parse(text)
    library = client()
    with explained(where):
        if where.path:
            try:
                return _file(library, where, where.path)
            except library.errors.EntryNotFoundError as error:
                # A folder, perhaps. LocalEntryNotFoundError: it is not in the cache, and there is no connection.
                if isinstance(error, library.errors.LocalEntryNotFoundError):
                    raise
        return _folder(library, where, _names(library, where))


def push(folder: Path, repo: str, *, private: bool = False, message: str = MESSAGE, revision: str | None = None) -> str:
    """Make the page `repo`, where there is none yet, and bring all files of `folder` there; returns its address.

    revision: the branch that they come to; it is there already.

    Raises:
        UserError: no login, no permission, no such branch, no connection, or no huggingface_hub.
    """
    where = Reference(parse(f"hf://{repo}").repo, "", revision)
    api = client().HfApi()
    with explained(where):
        page: str = str(api.create_repo(where.repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=where.repo, folder_path=str(folder), commit_message=message, revision=revision)
    return page


def client() -> Any:
    """The package huggingface_hub. Raises UserError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        from huggingface_hub.utils.logging import disable_propagation
    except ImportError as error:
        raise UserError("hf:// needs the package huggingface_hub: pip install 'stablesr-edge[hub]'") from error
    disable_propagation()  # it shows its messages itself
    return huggingface_hub


def _file(library: Any, where: Reference, name: str) -> Path:
    known = library.try_to_load_from_cache(where.repo, name, revision=where.revision)
    path = Path(library.hf_hub_download(where.repo, name, revision=where.revision))
    if path.suffix in WEIGHTS:
        digest = _checked(path, fresh=not isinstance(known, str))
        log.info("hf://%s/%s: %s%s", where.repo, name, path, f", sha256 {digest}" if digest else "")
    return path


def _checked(path: Path, *, fresh: bool) -> str:
    """The SHA-256 of a file in the cache, which is named after it; compared with its content where it is new."""
    blob = path.resolve()
    told = blob.name if LFS_SHA256.fullmatch(blob.name) else ""
    if not fresh:
        return told
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if told and found != told:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{path.name} arrived damaged: its sha256 is {found}, and the hub tells {told}; it was deleted, "
            "so that the same command downloads it again"
        )
    return found


def _names(library: Any, where: Reference) -> list[str]:
    """The files of a page: as the hub lists them or, where it cannot be asked, those in the cache."""
    errors = library.errors
    try:
        return list(library.HfApi().list_repo_files(where.repo, revision=where.revision))
    except errors.HfHubHTTPError:
        raise
    except (errors.HTTPError, OSError):  # no answer, or HF_HUB_OFFLINE
        folder = _cached(library, where)
        if folder is None:
            raise
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _cached(library: Any, where: Reference) -> Path | None:
    """The folder of a revision in the cache."""
    pages = Path(library.constants.HF_HUB_CACHE) / f"models--{where.repo.replace('/', '--')}"
    revision = where.revision or "main"
    reference = pages / "refs" / revision
    folder = pages / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
    return folder if folder.is_dir() else None


def _folder(library: Any, where: Reference, names: list[str]) -> Path:
    """Fetch the weights of a page or of a folder in it; the folder's path, or that of the only file of weights."""
    prefix = f"{where.path}/" if where.path else ""
    inside = [name for name in names if name.startswith(prefix)]
    if not inside:
        near = closest(where.path, names)
        raise UserError(f"there is no {where.path!r} on this page" + (f"; did you mean {near!r}?" if near else ""))
    folders = [f"{prefix}{part}/" for part in (*PARTS, ADDED) if any(n.startswith(f"{prefix}{part}/") for n in inside)]
    chosen = {folder: found for folder in folders or [prefix] if (found := weights_in(inside, folder))}
    if not chosen:
        return _file(library, where, _only_file(where, [n for n in inside if "/" not in n.removeprefix(prefix)]))
    for name in inside:
        if name in (f"{prefix}{CONFIG}", f"{prefix}{ADDED}/{CONFIG}"):
            _file(library, where, name)
    for folder, (name, is_index) in chosen.items():
        path = _file(library, where, name)
        for shard in shard_names(path) if is_index else ():
            _file(library, where, f"{folder}{shard}")
    root = path.parents[len(PurePosixPath(name).parts) - 1]
    return root / where.path


def _only_file(where: Reference, names: list[str]) -> str:
    """The file of weights among these, where there is one alone."""
    weights = [name for name in names if name.endswith(WEIGHTS)]
    if len(weights) != 1:
        there = f"{', '.join(weights[:6])}{', …' if len(weights) > 6 else ''}" or "none of weights"
        raise UserError(f"which file is meant? Write hf://{where.repo}/FILE; files there: {there}")
    return weights[0]


@contextmanager
def explained(where: Reference) -> Iterator[None]:
    """Raise UserError, with the place first, for whatever goes wrong between here and the hub."""
    errors = client().errors
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (errors.HTTPError, errors.HFValidationError, OSError, RuntimeError) as error:
        raise UserError(f"{where}: {_in_words(errors, where, error)}") from error


def _in_words(errors: Any, where: Reference, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "its owner asks for consent first: give it on the model's page, then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"this page has no revision {where.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            "there is no such model page, or this login may not use it: check the name, or log in with `hf auth login`"
        )
    if status is not None:
        return f"the hub answers {status}; try again later"
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return "it is not in the cache, and the hub cannot be reached (no connection, or HF_HUB_OFFLINE is set)"
    if isinstance(error, (errors.HFValidationError, PermissionError)) or getattr(error, "errno", None):
        return first_line(error)
    return f"the transfer broke off ({first_line(error)}); what came is kept, and the same command goes on from there"
