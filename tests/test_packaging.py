"""What the build decides from what it finds, and what it says where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import grouped_conv
from grouped_conv import _C, _libraries, _version

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


toolchain = _load("toolchain", ROOT / "_build" / "toolchain.py")


def _torch(version: str = "2.13.0", cuda: str | None = "13.0") -> Any:
    return toolchain.Torch(Path("torch"), version, cuda)


def _nvcc(version: str = "13.0") -> Any:
    return toolchain.Nvcc(Path("nvcc"), version)


def _fake_torch(directory: Path, version: str) -> Path:
    (directory / "include/torch/csrc/stable").mkdir(parents=True)
    (directory / "include/torch/csrc/stable/library.h").touch()
    (directory / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    return directory


# torch -----------------------------------------------------------------------------------------


def test_finds_the_torch_of_this_process() -> None:
    found = toolchain.find_torch({})
    assert found.directory == Path(torch.__file__).parent
    assert found.version == str(torch.__version__)
    assert found.cuda == torch.version.cuda


def test_finds_the_torch_behind_build_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PYTHONPATH", os.devnull)
    found = toolchain.find_torch({})
    assert found is not None
    assert found.directory == Path(torch.__file__).parent


def test_finds_the_torch_of_the_activated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = _fake_torch(tmp_path / "torch", "2.12.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        toolchain, "_torch_of", lambda python: directory if tmp_path in python.parents else None
    )
    assert toolchain.find_torch({"VIRTUAL_ENV": str(tmp_path)}).version == "2.12.0"
    assert toolchain.find_torch({}) is None


def test_torch_can_be_named(tmp_path: Path) -> None:
    directory = _fake_torch(tmp_path, "2.11.0a0+gitabc")
    assert toolchain.find_torch({"GROUPED_CONV_TORCH_DIR": str(directory)}).directory == directory


def test_says_how_to_mend_an_old_torch(tmp_path: Path) -> None:
    directory = _fake_torch(tmp_path, "2.10.1+cu128")
    with pytest.raises(SystemExit, match=r"2\.10\.1\+cu128.*pip install --upgrade"):
        toolchain.find_torch({"GROUPED_CONV_TORCH_DIR": str(directory)})


def test_refuses_a_directory_without_torch(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not the directory of an installed torch"):
        toolchain.find_torch({"GROUPED_CONV_TORCH_DIR": str(tmp_path)})


# Tools -----------------------------------------------------------------------------------------


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_passes_over_a_cmake_that_is_broken_or_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _script(tmp_path / "broken" / "cmake", "exit 1")
    _script(tmp_path / "old" / "cmake", "echo cmake version 3.22.1")
    _script(tmp_path / "good" / "cmake", "echo cmake version 4.0.0")
    path = os.pathsep.join(str(tmp_path / name) for name in ("broken", "old", "good"))
    monkeypatch.setenv("PATH", path)
    assert toolchain.find_cmake() == tmp_path / "good" / "cmake"


def test_says_how_to_get_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler was found: install"):
        toolchain.check_compiler({})
    with pytest.raises(SystemExit, match="CXX=missing-cxx cannot be run"):
        toolchain.check_compiler({"CXX": "missing-cxx -m64"})


def test_cuda_home_decides_which_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _script(tmp_path / "a" / "bin" / "nvcc", "echo Cuda compilation tools, release 12.8, V12.8.9")
    _script(tmp_path / "b" / "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.88")
    monkeypatch.setenv("PATH", str(tmp_path / "b"), prepend=os.pathsep)
    assert toolchain.find_nvcc({"CUDA_HOME": str(tmp_path / "a")}).version == "12.8"
    assert toolchain.find_nvcc({}).version == "13.0"
    assert toolchain.find_nvcc({"CUDA_HOME": str(tmp_path)}) is None


# CUDA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0;9.0+PTX", ("80-real", "90-real", "90-virtual")),
        ("8.0 8.6,9.0", ("80-real", "86-real", "90-real")),
        ("9.0a;10.0f+PTX", ("90a-real", "100f-real", "100f-virtual")),
        ("12.0", ("120-real",)),
        ("7.0 7.5 8.0", ("80-real",)),
        ("Hopper", ("90-real", "90-virtual")),
        ("8.0;8.0", ("80-real",)),
    ],
)
def test_architecture_list(text: str, archs: tuple[str, ...]) -> None:
    assert toolchain.parse_arch_list(text) == archs


@pytest.mark.parametrize("text", ["sm_80", "8", "80", "8.0-PTX"])
def test_architecture_list_says_what_is_wrong(text: str) -> None:
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST"):
        toolchain.parse_arch_list(text)


@pytest.mark.parametrize(
    ("text", "force"),
    [("1", True), ("on", True), ("0", False), ("OFF", False), ("", None), (None, None)],
)
def test_force(text: str | None, force: bool | None) -> None:
    assert toolchain.parse_force(text) is force


def test_force_says_what_is_wrong() -> None:
    with pytest.raises(SystemExit, match="neither 1 nor 0"):
        toolchain.parse_force("maybe")


def test_cuda_is_built_for_the_visible_devices() -> None:
    plan = toolchain.plan_cuda(_torch(), _nvcc(), ["8.0", "9.0"])
    assert plan.nvcc == _nvcc()
    assert plan.archs == ("80-real", "90-real", "90-virtual")
    assert plan.absent_reason is None


def test_named_architectures_win_over_visible_devices() -> None:
    plan = toolchain.plan_cuda(_torch(), _nvcc(), ["9.0"], arch_list="8.6")
    assert plan.archs == ("86-real",)


def test_default_architectures() -> None:
    assert toolchain.plan_cuda(_torch(), _nvcc(), []).archs == ("80-real", "90-real", "90-virtual")


@pytest.mark.parametrize(
    ("torch_build", "nvcc", "visible", "force", "reason"),
    [
        (_torch(), None, ["9.0"], None, "no nvcc"),
        (_torch(cuda=None), None, [], None, "built without CUDA"),
        (_torch(cuda=None), _nvcc(), [], None, "FORCE_CUDA=1"),
        (_torch(cuda="12.8"), _nvcc("13.0"), ["9.0"], None, "nvcc is of CUDA 13.0"),
        (_torch(), _nvcc(), ["7.5"], None, "compute capability 8.0"),
        (_torch(), _nvcc(), ["9.0"], False, "FORCE_CUDA=0"),
    ],
)
def test_no_cuda_has_a_reason(
    torch_build: Any, nvcc: Any, visible: list[str], force: bool | None, reason: str
) -> None:
    plan = toolchain.plan_cuda(torch_build, nvcc, visible, force=force)
    assert plan.nvcc is None
    assert plan.archs == ()
    assert reason in plan.absent_reason


def test_forced_cuda() -> None:
    plan = toolchain.plan_cuda(_torch(cuda=None), _nvcc(), [], force=True)
    assert plan.nvcc == _nvcc()
    with pytest.raises(SystemExit, match="no nvcc was found: install"):
        toolchain.plan_cuda(_torch(), None, ["9.0"], force=True)
    with pytest.raises(SystemExit, match=r"compute capability 8\.0"):
        toolchain.plan_cuda(_torch(), _nvcc(), ["7.5"], force=True)


def test_hidden_devices_are_not_visible() -> None:
    assert toolchain.visible_cuda_archs({"CUDA_VISIBLE_DEVICES": ""}) == []


# Backend ---------------------------------------------------------------------------------------


def _load_backend(monkeypatch: pytest.MonkeyPatch, setuptools_version: str) -> Any:
    setuptools = types.ModuleType("setuptools")
    build_meta = types.ModuleType("setuptools.build_meta")
    vars(setuptools).update(__version__=setuptools_version, build_meta=build_meta)
    for hook in ("sdist", "wheel", "editable"):
        setattr(build_meta, f"get_requires_for_build_{hook}", lambda settings: [])
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    monkeypatch.setitem(sys.modules, "setuptools.build_meta", build_meta)
    monkeypatch.setitem(sys.modules, "toolchain", toolchain)
    return _load("grouped_conv_build_backend", ROOT / "_build" / "backend.py")


def test_backend_requires_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _load_backend(monkeypatch, "80.9.0")
    monkeypatch.setattr(backend, "check_compiler", lambda: None)
    monkeypatch.setattr(backend, "find_torch", _torch)
    monkeypatch.setattr(backend, "find_cmake", lambda: Path("cmake"))
    monkeypatch.setattr(backend, "find_ninja", lambda: Path("ninja"))
    assert backend.get_requires_for_build_wheel() == []
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    monkeypatch.setattr(backend, "find_cmake", lambda: None)
    assert backend.get_requires_for_build_editable() == ["torch>=2.11", "cmake>=3.24"]
    assert backend.get_requires_for_build_sdist() == []


def test_backend_says_how_to_mend_old_setuptools(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"this is 65\.5\.0: run `pip install --upgrade"):
        _load_backend(monkeypatch, "65.5.0")


# The installed package -------------------------------------------------------------------------


def test_version_is_the_same_everywhere() -> None:
    assert _C.build_info()["version"] == _version.__version__
    assert importlib.metadata.version("grouped-conv") == _version.__version__


def test_build_info() -> None:
    info = _C.build_info()
    assert (info["cuda"] is None) == (info["cuda_absent_reason"] is not None)
    assert bool(info["cuda_architectures"]) == (info["cuda"] is not None)
    assert info["compiler"]


def test_the_info_module_needs_no_torch() -> None:
    program = (
        "import importlib.util as u, sys\n"
        f"s = u.spec_from_file_location('_C', {_C.__file__!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "assert m.build_info()['version'] and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_absent_cuda_has_a_reason() -> None:
    if torch.version.cuda is None or _C.build_info()["cuda"] is None:
        assert "CUDA" in (_libraries.cuda_absent_reason() or "")


def test_importing_a_source_tree_says_what_to_do(tmp_path: Path) -> None:
    source = Path(grouped_conv.__file__).parent
    shutil.copy(source / "_libraries.py", tmp_path / "_libraries.py")
    with pytest.raises(ImportError, match=r"pip install -e \.") as error:
        _load("libraries_of_a_source_tree", tmp_path / "_libraries.py").load()
    assert "\n" not in str(error.value)
