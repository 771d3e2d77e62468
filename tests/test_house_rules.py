"""The house rules of house_rules.py: the real tree breaks none, and each is shown to catch a file that does."""

import subprocess
import sys
from pathlib import Path

import pytest
from house_rules import (
    CODE,
    FILE_LINES,
    FUNCTION_LINES,
    LIGHTNING,
    ROOT,
    Rule,
    autoencoder_knows_only_the_ground_floor,
    basicsr_stands_alone,
    constructors_name_their_arguments,
    defaults_are_immutable,
    diffusion_is_built_in_floors,
    files_fit_on_a_walk,
    functions_fit_on_a_screen,
    imports_point_downward,
    inside_basicsr_all_look_to_utils,
    library_prints_nothing,
    lightning_keeps_to_its_rooms,
    modules_know_no_models,
    no_import_goes_in_a_circle,
    nothing_bends_the_search_path,
    nothing_is_sent_to_a_device_by_name,
    only_a_callback_evaluates,
    package_files_are_empty,
    packages_have_their_file,
    sources,
    the_library_finds_its_files_as_resources,
)

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
        "ldm/models/diffusion/guidance.py": "import ldm.models.diffusion.ddpm",
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
        "ldm/models/autoencoder.py": "from ldm.data import datamodule",
        "ldm/models/diffusion/process.py": "from ldm.models.build import build_model",
        "ldm/data/datamodule.py": "from ldm.models import autoencoder",
        "ldm/inference/f.py": "from ldm.evaluation.measure import runs",
        "ldm/inference/g.py": "import ldm.training.plots",
        "ldm/evaluation/measure/runs.py": "from ldm.training import run_folder",
        "ldm/evaluation/report/page.py": "import torch",
        "ldm/evaluation/report/summary.py": "from ldm.evaluation.measure.records import Record",
        "ldm/training/train.py": "from ldm.inference import Upscaler",
        "ldm/config.py": "from ldm.models.diffusion import schedule",
        "ldm/entry.py": "from ldm.training import cli",
    }),
    (only_a_callback_evaluates, {
        "main.py": "import ldm.evaluation.report.page",
        "ldm/training/train.py": "from ldm.evaluation.measure import restore",
    }),
    (no_import_goes_in_a_circle, {}),
    (nothing_bends_the_search_path, {
        "scripts/a.py": "import sys\nsys.path.insert(0, '..')",
        "benchmarks/b.py": "import sys\nsys.path += ['..']",
    }),
    (the_library_finds_its_files_as_resources, {"ldm/a.py": "from pathlib import Path\nX = Path(__file__).parent"}),
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
        "ldm/config.py": "from ldm.util import closest\nfrom ldm import shipped",
        "ldm/util.py": "",
        "ldm/evaluation/__init__.py": "",
        "ldm/evaluation/measure/__init__.py": "",
        "ldm/evaluation/measure/restore.py": "import ldm.evaluation.report.page, ldm.inference",
        "ldm/evaluation/report/__init__.py": "",
        "ldm/evaluation/report/page.py": "from ldm.evaluation.report import charts\nimport jinja2",
        "ldm/evaluation/report/charts.py": "",
        "ldm/training/__init__.py": "",
        "ldm/training/callbacks/__init__.py": "",
        "ldm/training/callbacks/sample_metrics.py": "import pytorch_lightning\nimport ldm.evaluation.measure.restore",
        "ldm/models/__init__.py": "",
        "ldm/models/autoencoder.py": "import pytorch_lightning\nfrom ldm.models.diffusion import checkpoint",
        "ldm/models/diffusion/__init__.py": "",
        "ldm/models/diffusion/first_stage.py": "from ldm.models.autoencoder import AutoencoderKL",
        "ldm/models/diffusion/ddpm.py": "from ldm.models.diffusion import sampling, schedule",
        "ldm/models/diffusion/schedule.py": "",
        "ldm/models/diffusion/sampling.py": "from ldm.models.diffusion import guidance, process",
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


def test_a_circle_is_found(tmp_path: Path) -> None:
    circle = {
        "ldm/a.py": "import ldm.b",
        "ldm/b.py": "def f():\n    from ldm import c",
        "ldm/c.py": "from ldm.a import x",
    }
    for path, text in circle.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert no_import_goes_in_a_circle(tmp_path) == ["in or above a circle: ldm.a, ldm.b, ldm.c"]
    (tmp_path / "ldm/c.py").write_text("")
    assert no_import_goes_in_a_circle(tmp_path) == []


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after some code, in a Python of its own."""
    code = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )


REPORT = [path.removesuffix(".py").replace("/", ".") for path, _ in sources(ROOT, "ldm/evaluation/report")]


def test_reports_need_no_torch() -> None:
    loaded = loaded_by(f"import {', '.join(REPORT)}")
    assert {"ldm", "jinja2"} <= loaded
    assert not loaded & {"torch", *LIGHTNING}


def test_a_study_is_reported_without_torch() -> None:
    loaded = loaded_by("import ldm.study.report, ldm.study.sitting")
    assert not loaded & {"torch", *LIGHTNING}


def test_edge_maps_come_alone() -> None:
    loaded = loaded_by("import basicsr.utils.edge_utils")
    assert {"basicsr", "cv2"} <= loaded
    assert not loaded & {"ldm", *LIGHTNING}
