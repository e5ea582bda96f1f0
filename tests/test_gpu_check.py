"""scripts/gpu_check.sh as far as it can be tested without a GPU, and the golden vectors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
GOLDEN = ROOT / "scripts" / "golden_vectors.py"
STAGES = [
    "machine", "build", "import", "tests", "benchmark", "golden", "compare", "ncu", "memcheck",
    "racecheck", "initcheck", "batches", "nchw", "float32", "regnet", "peers", "triton",
    "triton_bench", "gates",
]  # fmt: skip


def call(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def test_dry_run_shows_every_stage_and_does_nothing(tmp_path: Path):
    out = tmp_path / "out"
    done = call("--dry-run", out)
    assert done.returncode == 0
    assert re.findall(r"^(\w+) +\d+ s  ", done.stdout, re.M) == STAGES
    assert not out.exists()


def test_commands_of_the_stages_are_well_formed(tmp_path: Path):
    """Each is a program of the shell, and names files that there are."""
    text = call("--dry-run", tmp_path).stdout
    for command in re.split(r"^\w+ +\d+ s  ", text, flags=re.M)[1:]:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        for path in re.findall(r"\b(?:tests|scripts|benchmarks)/[\w/]+\.py", command):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("arguments", [(), ("--budget", "soon", "x"), ("--fast", "x")])
def test_wrong_arguments(arguments: tuple[str, ...]):
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr


def fake_tools(directory: Path) -> str:
    """A PATH whose python3 fails to build and takes forever to test; there is no ncu."""
    script = """#!/bin/sh
case "$*" in
  *"pip install"*) echo "no compiler"; exit 3 ;;
  *pytest*) sleep 60 ;;
  *) echo "ran $*" ;;
esac
"""
    for name in ("python3", "nvidia-smi", "nvcc", "cmake"):
        (directory / name).write_text(script)
        (directory / name).chmod(0o755)
    for name in ("bash", "sh", "timeout", "tee", "mkdir", "dirname", "sed", "sleep", "cat"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return str(directory)


def test_a_stage_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    done = call("--budget", "3", tmp_path / "out", path=fake_tools(tools))
    summary = (tmp_path / "out" / "summary.txt").read_text()
    outcome = {line.split()[0]: line.split(None, 1)[1] for line in summary.splitlines()[:-1]}
    assert list(outcome) == STAGES
    assert outcome["machine"].startswith("passed")
    assert outcome["build"].startswith("FAILED")
    assert outcome["import"].startswith("passed")
    assert outcome["tests"].startswith("out of time")
    assert outcome["gates"].startswith("no time")
    assert done.returncode == 1
    assert re.search(r"^\d+ s in all$", summary, re.M)
    assert "no compiler" in (tmp_path / "out" / "log.txt").read_text()


def test_missing_profilers_are_skipped(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    path = fake_tools(tools)
    text = (tools / "python3").read_text().replace("sleep 60", "exit 0").replace("exit 3", "exit 0")
    (tools / "python3").write_text(text)
    done = call("--budget", "60", tmp_path / "out", path=path)
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.returncode == 0
    for name in ("compare", "ncu", "memcheck", "racecheck", "initcheck"):
        assert re.search(rf"^{name} +skipped", summary, re.M)
    assert len(re.findall(r"\bpassed\b", summary)) == len(STAGES) - 5


def golden(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, GOLDEN, "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_golden_vectors_notice_a_single_bit(tmp_path: Path):
    path = tmp_path / "golden.npz"
    assert golden(path).returncode == 0
    arrays = dict(np.load(path))
    assert len(arrays) == 10 * 2 * (3 + 3)
    arrays["dgrad c8 s2 float16"].flat[5] ^= 1
    np.savez(path, **arrays)
    other = golden("--compare", path)
    assert other.returncode == 1
    # All but the element that was changed are the same.
    assert other.stdout == "dgrad c8 s2 float16: 1 of 3024 elements have other bits\n"
