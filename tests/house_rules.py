"""The house rules: who may import whom, and what the code must not contain. Read from the files, not from the docs.

Every rule takes the root of a tree and returns what breaks it.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ("basicsr", "ldm")
CODE = (*LIBRARY, "scripts", "main.py", "benchmarks", "examples")
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
LIGHTNING_ROOMS = (
    "ldm/models/diffusion/ddpm.py",
    "ldm/models/autoencoder.py",
    "ldm/data",
    "ldm/training",
    "ldm/inference/sharing.py",
    "ldm/launched.py",
    "benchmarks/loss_curves.py",  # its clock is a callback of the runs that it starts
)
# Floors of ldm/models/diffusion: a file may import from floors below its own, and above the ground from its own.
FLOORS = (
    {"schedule", "first_stage", "conditioning", "checkpoint", "tiling", "reference", "compute", "latent_pool"},
    {"process", "edge_condition", "frozen_parts"},
    {"training_loss", "sampling", "guidance"},
    {"edge_term", "last_value"},
    {"fork_api", "looking"},
    {"ddpm"},
    {"faces"},
)
# What a room of ldm must not import. Rooms that are not there yet keep every rule.
UPPER = ("ldm.inference", "ldm.evaluation", "ldm.training", "ldm.exchange", "ldm.study")
FORBIDDEN = {
    "ldm/models": ("ldm.data", *UPPER),
    "ldm/models/diffusion": ("ldm.models.build",),
    "ldm/data": ("ldm.models", *UPPER),
    "ldm/inference": ("ldm.evaluation", "ldm.training", "ldm.exchange", "ldm.study"),
    "ldm/evaluation": ("ldm.training", "ldm.exchange", "ldm.study"),
    "ldm/models/formats": ("ldm.models.diffusion", "ldm.models.build"),
    "ldm/exchange": ("ldm.training", "ldm.inference", "ldm.evaluation.measure", "ldm.study"),
    "ldm/evaluation/report": (
        "ldm.models",
        "ldm.modules",
        "ldm.data",
        "ldm.inference",
        "ldm.evaluation.measure",
        "torch",
    ),
    "ldm/training": ("ldm.inference", "ldm.evaluation.report", "ldm.exchange", "ldm.study"),
}
# What stands in ldm/ beside the rooms serves them all, and knows none of them.
LOOSE = ("util", "config", "published", "console", "shipped", "entry", "machine")
# A module that reports may load: it needs no torch.
LIGHT = ("ldm.modules.losses.edge_weight",)
FUNCTION_LINES, FILE_LINES = 60, 400

Rule = Callable[[Path], list[str]]


def sources(root: Path, *places: str) -> Iterator[tuple[str, str]]:
    """Path (relative to `root`, with /) and text of the Python files at some places."""
    for place in places:
        for file in sorted((root / place).rglob("*.py") if not place.endswith(".py") else root.glob(place)):
            yield file.relative_to(root).as_posix(), file.read_text()


def nodes(root: Path, *places: str) -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of the files at some places, with `path:line`."""
    for path, text in sources(root, *places):
        for node in ast.walk(ast.parse(text)):
            yield f"{path}:{getattr(node, 'lineno', 1)}", node


def imports(root: Path, *places: str) -> Iterator[tuple[str, str]]:
    """Every import as (`path:line`, dotted name); `from a.b import c` gives a.b.c, relative ones are made absolute."""
    for where, node in nodes(root, *places):
        if isinstance(node, ast.Import):
            yield from ((where, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = where.split(":")[0].split("/")[: -node.level] if node.level else []
            module = [*package, *([node.module] if node.module else [])]
            yield from ((where, ".".join([*module, alias.name])) for alias in node.names)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of these packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def forbidden(found: Iterator[tuple[str, str]], *packages: str, but: tuple[str, ...] = ()) -> list[str]:
    """Those imports that lie in `packages` and not in `but`."""
    return [f"{where} imports {name}" for where, name in found if within(name, *packages) and not within(name, *but)]


def basicsr_stands_alone(root: Path) -> list[str]:
    return forbidden(imports(root, "basicsr"), "ldm", *LIGHTNING)


def inside_basicsr_all_look_to_utils(root: Path) -> list[str]:
    return [
        line
        for room in ("utils", "data", "metrics")
        for line in forbidden(imports(root, f"basicsr/{room}"), "basicsr", but=("basicsr.utils", f"basicsr.{room}"))
    ]


def modules_know_no_models(root: Path) -> list[str]:
    found = imports(root, "ldm/modules")
    # A published loss holds a metric.
    known = ("ldm.modules", "ldm.published", "ldm.util", "basicsr.utils", "basicsr.metrics.lpips")
    return forbidden(found, "ldm", "basicsr", but=known)


def diffusion_is_built_in_floors(root: Path) -> list[str]:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names} | {"__init__": 0}
    wrong = []
    for path, _ in sources(root, "ldm/models/diffusion"):
        stem = Path(path).stem
        if stem not in floor_of:
            wrong.append(f"{path} has no floor: give it one in FLOORS")
            continue
        own = floor_of[stem]
        open_to = {name for name, floor in floor_of.items() if floor < own or floor == own > 0}
        below = tuple(f"ldm.models.diffusion.{name}" for name in open_to)
        wrong += forbidden(imports(root, path), "ldm.models.diffusion", but=below)
    return wrong


def autoencoder_knows_only_the_ground_floor(root: Path) -> list[str]:
    ground = tuple(f"ldm.models.diffusion.{name}" for name in FLOORS[0])
    return forbidden(imports(root, "ldm/models/autoencoder.py"), "ldm.models.diffusion", but=ground)


def imports_point_downward(root: Path) -> list[str]:
    loose = [f"ldm/{name}.py" for name in LOOSE]
    return [
        *forbidden(imports(root, *LIBRARY, "scripts"), "main"),
        *forbidden(imports(root, *LIBRARY), "scripts", "benchmarks", "examples", "tests"),
        *(line for room, above in FORBIDDEN.items() for line in forbidden(imports(root, room), *above, but=LIGHT)),
        *forbidden(imports(root, *loose), "ldm", but=tuple(f"ldm.{name}" for name in LOOSE)),
    ]


def only_a_callback_evaluates(root: Path) -> list[str]:
    """Training measures while it runs, in its callbacks; nothing else below or beside evaluation knows of it."""
    found = [path for path, _ in sources(root, "ldm/training", "main.py")]
    return forbidden(imports(root, *(path for path in found if "/callbacks/" not in path)), "ldm.evaluation")


def no_import_goes_in_a_circle(root: Path) -> list[str]:
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path, _ in sources(root, *LIBRARY)
    }
    needs: dict[str, set[str]] = {module: set() for module in modules}
    for where, name in imports(root, *LIBRARY):
        module = where.split(":")[0].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        named = name if name in modules else name.rpartition(".")[0]
        needs[module] |= {named} & modules - {module}
    while free := {module for module, needed in needs.items() if not needed}:
        needs = {module: needed - free for module, needed in needs.items() if module not in free}
    return [f"in or above a circle: {', '.join(sorted(needs))}"] if needs else []


def nothing_bends_the_search_path(root: Path) -> list[str]:
    """What is installed is found; what is not must not seem to be."""
    found = ((where, ast.unparse(node)) for where, node in nodes(root, *CODE) if isinstance(node, ast.Attribute))
    return [f"{where} {text}" for where, text in found if text == "sys.path"]


def the_library_finds_its_files_as_resources(root: Path) -> list[str]:
    found = ((where, node) for where, node in nodes(root, *LIBRARY) if isinstance(node, ast.Name))
    return [f"{where} {node.id}: use importlib.resources" for where, node in found if node.id == "__file__"]


def lightning_keeps_to_its_rooms(root: Path) -> list[str]:
    rooms = {path for room in LIGHTNING_ROOMS for path, _ in sources(root, room)}
    others = [path for path, _ in sources(root, *CODE) if path not in rooms]
    return forbidden(imports(root, *others), *LIGHTNING)


def package_files_are_empty(root: Path) -> list[str]:
    """All but the door through which users of the library come."""
    packages = [(path, text) for path, text in sources(root, *LIBRARY) if path.endswith("/__init__.py")]
    return [path for path, text in packages if text.strip() and path != "ldm/inference/__init__.py"]


def packages_have_their_file(root: Path) -> list[str]:
    folders = {(root / path).parent for path, _ in sources(root, *LIBRARY)}
    return [folder.relative_to(root).as_posix() for folder in folders if not (folder / "__init__.py").is_file()]


def library_prints_nothing(root: Path) -> list[str]:
    found = ((where, node.func) for where, node in nodes(root, *LIBRARY) if isinstance(node, ast.Call))
    return [f"{where} print(" for where, call in found if isinstance(call, ast.Name) and call.id == "print"]


def nothing_is_sent_to_a_device_by_name(root: Path) -> list[str]:
    found = ((where, node.func) for where, node in nodes(root, *CODE) if isinstance(node, ast.Call))
    return [f"{where} .cuda(" for where, call in found if isinstance(call, ast.Attribute) and call.attr == "cuda"]


def functions(root: Path, *places: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for where, node in nodes(root, *places):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield where, node


def defaults_are_immutable(root: Path) -> list[str]:
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    wrong = []
    for where, node in nodes(root, *CODE):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for default in filter(None, [*node.args.defaults, *node.args.kw_defaults]):
                made = isinstance(default, ast.Call) and isinstance(default.func, ast.Name)
                if isinstance(default, literals) or (made and default.func.id in ("list", "dict", "set")):  # type: ignore[attr-defined]  # made says that it is a Name
                    wrong.append(f"{where} has the default {ast.unparse(default)}")
    return wrong


def constructors_name_their_arguments(root: Path) -> list[str]:
    found = functions(root, *LIBRARY)
    return [f"{where} **{f.args.kwarg.arg}" for where, f in found if f.name in ("__init__", "__new__") and f.args.kwarg]


def functions_fit_on_a_screen(root: Path) -> list[str]:
    lengths = ((where, f.name, (f.end_lineno or 0) - f.lineno + 1) for where, f in functions(root, *CODE, "tests"))
    return [f"{where} {name} has {lines} lines" for where, name, lines in lengths if lines > FUNCTION_LINES]


def files_fit_on_a_walk(root: Path) -> list[str]:
    lengths = ((path, len(text.splitlines())) for path, text in sources(root, *CODE, "tests"))
    return [f"{path} has {lines} lines" for path, lines in lengths if lines > FILE_LINES]
