"""The house rules: who may import whom, and what the code must not contain. Read from the files, not from the docs.

Every rule takes the root of a tree and returns what breaks it. The real tree must break none; below, each rule is shown
to catch a file that does.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ("basicsr", "ldm")
CODE = (*LIBRARY, "scripts", "main.py")
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
LIGHTNING_ROOMS = (
    "ldm/models/diffusion/ddpm.py", "ldm/models/autoencoder.py", "ldm/training", "ldm/data/datamodule.py",
)  # fmt: skip
# Floors of ldm/models/diffusion: a file may import only from floors below its own.
FLOORS = (
    {"schedule", "first_stage", "conditioning", "checkpoint", "tiling"},
    {"process"},
    {"training_loss", "sampling", "guidance"},
    {"edge_term", "last_value"},
    {"fork_api"},
    {"ddpm"},
)
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
    return forbidden(found, "ldm", "basicsr", but=("ldm.modules", "ldm.published", "ldm.util", "basicsr.utils"))


def diffusion_is_built_in_floors(root: Path) -> list[str]:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names} | {"__init__": 0}
    wrong = []
    for path, _ in sources(root, "ldm/models/diffusion"):
        stem = Path(path).stem
        if stem not in floor_of:
            wrong.append(f"{path} has no floor: give it one in FLOORS")
            continue
        below = tuple(f"ldm.models.diffusion.{name}" for name, floor in floor_of.items() if floor < floor_of[stem])
        wrong += forbidden(imports(root, path), "ldm.models.diffusion", but=below)
    return wrong


def autoencoder_knows_only_the_ground_floor(root: Path) -> list[str]:
    ground = tuple(f"ldm.models.diffusion.{name}" for name in FLOORS[0])
    return forbidden(imports(root, "ldm/models/autoencoder.py"), "ldm.models.diffusion", but=ground)


def imports_point_downward(root: Path) -> list[str]:
    upper = ("ldm/inference/", "ldm/evaluation/")
    below_inference = [path for path, _ in sources(root, "ldm") if not path.startswith(upper)]
    see_evaluation = ("ldm/evaluation/", "ldm/training/callbacks/sample_metrics.py")
    others = [path for path, _ in sources(root, *LIBRARY, "main.py") if not path.startswith(see_evaluation)]
    return [
        *forbidden(imports(root, *LIBRARY, "scripts"), "main"),
        *forbidden(imports(root, *LIBRARY), "scripts"),
        *forbidden(imports(root, *below_inference), "ldm.inference"),
        *forbidden(imports(root, *others), "ldm.evaluation"),
    ]


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
                if isinstance(default, literals) or (made and default.func.id in ("list", "dict", "set")):  # type: ignore[attr-defined]
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


LONG_FUNCTION = "def f() -> None:\n" + "    pass\n" * FUNCTION_LINES
# Each rule, and files of which every one breaks it.
RULES: list[tuple[Rule, dict[str, str]]] = [
    (basicsr_stands_alone, {
        "basicsr/data/a.py": "import ldm.util",
        "basicsr/utils/b.py": "def f():\n    from ldm import util",
        "basicsr/c.py": "import pytorch_lightning as pl",
    }),
    (inside_basicsr_all_look_to_utils, {
        "basicsr/utils/a.py": "from basicsr.data.kernels import draw_kernel",
        "basicsr/utils/b.py": "from ..metrics import psnr_ssim",
        "basicsr/metrics/c.py": "from basicsr import data",
        "basicsr/data/d.py": "import basicsr.metrics.psnr_ssim",
    }),
    (modules_know_no_models, {
        "ldm/modules/a.py": "from ldm.models import autoencoder",
        "ldm/modules/losses/b.py": "from basicsr.data.pair_pool import Pair",
        "ldm/modules/c.py": "from ..training.loggers import MetricsFile",
    }),
    (diffusion_is_built_in_floors, {
        "ldm/models/diffusion/schedule.py": "from ldm.models.diffusion.process import Process",
        "ldm/models/diffusion/tiling.py": "from ldm.models.diffusion import schedule",
        "ldm/models/diffusion/process.py": "from . import sampling",
        "ldm/models/diffusion/sampling.py": "from ldm.models.diffusion.training_loss import TrainingLoss",
        "ldm/models/diffusion/training_loss.py": "import ldm.models.diffusion.ddpm",
        "ldm/models/diffusion/another.py": "",
    }),
    (autoencoder_knows_only_the_ground_floor, {
        "ldm/models/autoencoder.py": "from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT",
    }),
    (imports_point_downward, {
        "ldm/a.py": "from main import ImageLogger",
        "basicsr/b.py": "import main",
        "scripts/c.py": "import main",
        "ldm/d.py": "import scripts.upscale",
        "ldm/models/e.py": "from ldm.inference import pipeline",
        "ldm/inference/f.py": "from ldm.evaluation import runs",
        "main.py": "import ldm.evaluation.page",
    }),
    (lightning_keeps_to_its_rooms, {
        "ldm/config.py": "import pytorch_lightning as pl",
        "ldm/models/diffusion/sampling.py": "from lightning_fabric import Fabric",
        "scripts/a.py": "from lightning import Trainer",
    }),
    (package_files_are_empty, {"ldm/__init__.py": "from ldm.util import closest"}),
    (packages_have_their_file, {"ldm/a/b.py": ""}),
    (library_prints_nothing, {"ldm/a.py": "print(1)", "basicsr/b.py": "def f():\n    print()"}),
    (nothing_is_sent_to_a_device_by_name, {"main.py": "x.cuda()", "ldm/a.py": "self.model.to(y).cuda(0)"}),
    (defaults_are_immutable, {
        "ldm/a.py": "def f(x=[]): ...",
        "basicsr/b.py": "class C:\n    def f(self, *, x={}): ...",
        "scripts/c.py": "f = lambda x=dict(): x",
    }),
    (constructors_name_their_arguments, {"ldm/a.py": "class C:\n    def __init__(self, x, **kwargs): ..."}),
    (functions_fit_on_a_screen, {"ldm/a.py": LONG_FUNCTION, "tests/b.py": LONG_FUNCTION.replace("def", "async def")}),
    (files_fit_on_a_walk, {"basicsr/a.py": "\n" * (FILE_LINES + 1), "main.py": "\n" * (FILE_LINES + 1)}),
]  # fmt: skip


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        pytest.param(rule, path, text, id=f"{rule.__name__}: {path}")
        for rule, files in RULES
        for path, text in files.items()
    ],
)
def test_the_rule_catches_a_file_that_breaks_it(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert len(rule(tmp_path)) == 1


def test_the_rules_allow_what_they_should(tmp_path: Path) -> None:
    allowed = {
        "basicsr/__init__.py": "",
        "basicsr/data/__init__.py": "",
        "basicsr/data/a.py": "from basicsr.utils import errors\nfrom .b import c\nx = torch.cuda.is_available()",
        "ldm/__init__.py": "\n",
        "ldm/training/callbacks/__init__.py": "",
        "ldm/training/__init__.py": "",
        "ldm/training/loggers.py": "import pytorch_lightning\nimport ldm.util",
        "ldm/training/callbacks/sample_metrics.py": "from ldm.evaluation import restore",
        "ldm/evaluation/__init__.py": "",
        "ldm/evaluation/restore.py": "from ldm.inference import pipeline",
        "ldm/models/__init__.py": "",
        "ldm/models/autoencoder.py": "import pytorch_lightning\nfrom ldm.models.diffusion import checkpoint",
        "ldm/models/diffusion/__init__.py": "",
        "ldm/models/diffusion/first_stage.py": "from ldm.models.autoencoder import AutoencoderKL",
        "ldm/models/diffusion/ddpm.py": "from ldm.models.diffusion import sampling, schedule",
        "scripts/a.py": "from ldm.inference import pipeline\nprint(1)\ndef f(x=(), **more): ...",
        "main.py": "print(1)\n" * FILE_LINES,
        "tests/a.py": LONG_FUNCTION.replace("    pass\n", "", 1),
    }
    for path, text in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [line for rule, _ in RULES for line in rule(tmp_path)] == []


def test_all_rooms_are_walked() -> None:
    walked = {path for path, _ in sources(ROOT, *CODE, "tests")}
    some = {"main.py", "basicsr/utils/edge_utils.py", "ldm/models/diffusion/ddpm.py", "tests/test_house_rules.py"}
    assert some <= walked


def test_edge_maps_come_alone() -> None:
    code = "import sys, basicsr.utils.edge_utils; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"basicsr", "cv2"} <= loaded
    assert not loaded & {"ldm", *LIGHTNING}
