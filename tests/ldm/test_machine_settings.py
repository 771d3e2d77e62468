"""What commands ask of the machine: OpenMP threads that wait, memory that is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POLICY = "OMP_WAIT_POLICY"
OURS = (POLICY, "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def run(code: str, **variables: str) -> str:
    """What Python code says in a process of its own, in which none of our variables is set but the given ones."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout.strip()


COMMAND = (
    "import os, runpy, sys\nsys.argv = {argv}\n"
    "class Spy:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'torch': print(os.environ.get('OMP_WAIT_POLICY')); os._exit(0)\n"
    "sys.meta_path.insert(0, Spy())\n"
    "sys.stdout.reconfigure(write_through=True)\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize(
    "argv",
    [
        ["main.py", "--base", "configs/demo/edge_cpu.yaml", "--check"],
        ["scripts/upscale.py", "--input", "README.md"],
        ["scripts/edge_maps.py", "IN", "OUT"],
        ["scripts/evaluate.py", "--run", "IN", "--data", "IN", "--out", "OUT"],
    ],
)
def test_a_program_s_threads_wait_before_torch_is_there(argv: list[str]) -> None:
    assert run(COMMAND.format(argv=argv)) == "passive"


def test_the_user_s_own_policy_stays() -> None:
    assert run(COMMAND.format(argv=["scripts/edge_maps.py", "IN", "OUT"]), **{POLICY: "active"}) == "active"


FAULTS = (
    "import resource, torch\nfrom ldm.machine import keep_freed_memory\n"
    "assert keep_freed_memory() is {kept}\n"
    "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    "for _ in range(12): torch.ones(1 << 24)\n"
    "before = faults()\n"
    "for _ in range(4): torch.ones(1 << 24)\n"  # 64 MiB each
    "print(faults() - before)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_kept_memory_is_not_cleared_by_the_kernel_again_and_again() -> None:
    pages = 4 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(run(FAULTS.format(kept=True))) < pages // 50
    # A user who has set malloc has it as it was set.
    assert int(run(FAULTS.format(kept=False), MALLOC_TRIM_THRESHOLD_="131072")) > pages // 2
