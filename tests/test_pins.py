"""The versions that get installed: requirements.txt (by `make lock`) and environment.yaml against pyproject.toml."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yaml").read_text())
INSTALLED_GROUPS = ("demo", "dev", "lmdb", "remote")
CUDA = ("nvidia-", "cuda-", "triton")  # torch's own on Linux, pinned by torch, and absent from a build for the CPU
# Other machines may need a package more or less.
PINNED_FOR = {
    "python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "platform_system": "Linux",
}  # fmt: skip


def declared(groups: tuple[str, ...] = INSTALLED_GROUPS) -> dict[str, Requirement]:
    """The core requirements in pyproject.toml and those of some optional groups, by canonical name."""
    lines = PROJECT["dependencies"] + [line for group in groups for line in PROJECT["optional-dependencies"][group]]
    requirements: dict[str, Requirement] = {canonicalize_name(line.name): line for line in map(Requirement, lines)}
    requirements.pop(canonicalize_name(PROJECT["name"]), None)
    return requirements


def pins(lines: list[str]) -> dict[str, Version]:
    """`name==version` lines, with files that `-c` names read in their place; anything else is an error."""
    found: dict[str, Version] = {}
    for line in (line.partition("#")[0].strip() for line in lines):
        if line.startswith("-c "):
            found |= pins((ROOT / line.removeprefix("-c ")).read_text().splitlines())
        elif line:
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"{line!r} is no exact pin"
            name = canonicalize_name(match[1])
            assert name not in found, f"{name} is pinned twice"
            found[name] = Version(match[2])
    return found


PINS = pins(["-c requirements.txt"])


def test_every_direct_requirement_is_pinned_within_its_range() -> None:
    for name, requirement in declared().items():
        assert name in PINS, f"{name} is in pyproject.toml, not in requirements.txt"
        assert requirement.specifier.contains(PINS[name], prereleases=True), f"{name}=={PINS[name]}: not {requirement}"


def test_the_page_adds_to_the_pins_and_changes_only_what_gradio_wants_older() -> None:
    added = pins(["-c requirements-app.txt"])
    assert all(
        requirement.specifier.contains(added[name])
        for name, requirement in declared(("app",)).items()
        if name not in declared(())
    )
    assert set(added) & set(PINS) == {"pillow", "tomlkit"}
    assert declared()["pillow"].specifier.contains(added["pillow"])


def test_conda_and_pip_get_the_same_versions() -> None:
    (from_pip,) = (entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    assert from_pip == ["-c requirements.txt", "-e .[dev]"]
    assert "pip install --quiet --no-input --disable-pip-version-check -c requirements.txt -e '.[dev]'" in MAKEFILE
    # Whatever conda itself installs must not be one of the pinned packages in another version.
    from_conda = {re.split("[=<> ]", entry)[0] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)}
    assert from_conda == {"python", "pip"}


def test_all_say_the_same_python() -> None:
    (conda,) = (entry for entry in ENVIRONMENT["dependencies"] if str(entry).startswith("python="))
    version = conda.removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={version}")
    for file in ("README.md", "Makefile"):
        said = set(re.findall(r"[Pp]ython ?(3\.\d+)", (ROOT / file).read_text()))
        assert said == {version}, f"{file} speaks of Python {said}"


def test_everything_that_is_installed_on_the_way_is_pinned() -> None:
    todo = [(name, frozenset(line.extras)) for name, line in declared().items()]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name.startswith(CUDA):
            continue
        seen.add((name, extras))
        assert name in PINS, f"{name} is installed, not pinned"
        for line in map(Requirement, requires(name) or []):
            environments = [PINNED_FOR | {"extra": extra} for extra in extras | {""}]
            if line.marker is None or any(line.marker.evaluate(environment) for environment in environments):
                todo.append((canonicalize_name(line.name), frozenset(line.extras)))
    assert {name for name, _ in seen} == set(PINS), "a pin that nothing needs"
    assert not [name for name in PINS if name.startswith(CUDA)]


def test_torch_is_pinned_to_a_release_that_is_on_every_index() -> None:
    assert PINS["torch"].local is None and declared()["torch"].specifier.contains(PINS["torch"])


def third_party(places: tuple[str, ...]) -> dict[str, str]:
    """Top-level modules that the code imports from outside, and a file that does."""
    found: dict[str, str] = {}
    for file in (file for place in places for file in ROOT.glob(place)):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0]: str(file) for name in names}
    own = {"basicsr", "ldm", "main", "scripts", "benchmarks", "examples"} | {
        path.stem for path in ROOT.glob("tests/**/*")
    }
    return {name: file for name, file in found.items() if name not in own and name not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("places", "groups"),
    [
        (
            ("basicsr/**/*.py", "ldm/**/*.py", "main.py"),
            ("app", "hub", "lmdb", "remote"),
        ),  # the page and what reads from elsewhere, which are loaded when they are asked for
        (("scripts/**/*.py", "examples/**/*.py", "benchmarks/**/*.py"), ("demo", "app", "real-esrgan", "diffusers")),
        (("tests/**/*.py",), (*INSTALLED_GROUPS, "browser", "diffusers")),
    ],
    ids=["library", "scripts", "tests"],
)
def test_what_the_code_imports_is_declared(places: tuple[str, ...], groups: tuple[str, ...]) -> None:
    distributions = packages_distributions()
    for module, file in third_party(places).items():
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert names & set(declared(groups)), f"{file} imports {module}, which pyproject.toml does not declare"


@pytest.mark.parametrize("line", ["torch>=2.13.0", "torch", "torch==2.*", "torch==2.13.0\ntorch==2.13.0"])
def test_a_loose_or_double_pin_is_seen(line: str) -> None:
    with pytest.raises(AssertionError):
        pins(line.splitlines())
