"""Builds the native libraries: one build_ext that drives CMake. All else is in pyproject.toml."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))

import toolchain  # noqa: E402


class FreshBuild(build):
    """Stages files into an empty directory: setuptools would package what was deleted since."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs CMakeLists.txt into the package directory."""

    def run(self) -> None:
        toolchain.check_compiler()
        torch = toolchain.find_torch()
        if torch is None:
            raise toolchain.BuildError(
                "no torch was found to build against: run `pip install torch`, or name the "
                "directory of an installed torch in GROUPED_CONV_TORCH_DIR"
            )
        cmake = toolchain.find_cmake()
        if cmake is None:
            wanted = ".".join(map(str, toolchain.MIN_CMAKE))
            raise toolchain.BuildError(f"CMake >= {wanted} is needed: run `pip install cmake`")
        plan = toolchain.plan_cuda(
            torch,
            toolchain.find_nvcc(),
            toolchain.visible_cuda_archs(),
            force=toolchain.parse_force(os.environ.get("FORCE_CUDA")),
            arch_list=os.environ.get("TORCH_CUDA_ARCH_LIST"),
        )
        toolchain.note(f"building against torch {torch.version} in {torch.directory}")
        if plan.nvcc is None:
            toolchain.note(f"CPU kernels only: {plan.absent_reason}")
        else:
            toolchain.note(f"CUDA {plan.nvcc.version} kernels for {', '.join(plan.archs)}")

        arguments = cmake_arguments(torch, plan)
        tree = build_tree(torch, arguments)
        configure(cmake, tree, arguments)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        call(cmake, "--build", tree, "--parallel", jobs)
        for old in self._libraries():
            old.unlink()
        call(cmake, "--install", tree, "--prefix", self._package())

    def _package(self) -> Path:
        base = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        return base / "grouped_conv"

    def _libraries(self) -> list[Path]:
        own = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
        paths = [self._package() / name for name in ("_cpu.so", "_cuda.so", own)]
        return [path for path in paths if path.exists()]

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._libraries()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def cmake_arguments(torch: toolchain.Torch, plan: toolchain.CudaPlan) -> list[str]:
    """What decides the build, apart from the source."""
    arguments = [
        f"-DCMAKE_BUILD_TYPE={'Debug' if os.environ.get('DEBUG') == '1' else 'Release'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DGROUPED_CONV_TORCH_DIR={torch.directory}",
        f"-DGROUPED_CONV_TORCH_VERSION={torch.version}",
    ]
    if plan.nvcc is None:
        arguments += ["-DGROUPED_CONV_CUDA=OFF"]
        arguments += [f"-DGROUPED_CONV_CUDA_ABSENT_REASON={plan.absent_reason}"]
    else:
        arguments += ["-DGROUPED_CONV_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={plan.nvcc.path}"]
        arguments += ["-DCMAKE_CUDA_ARCHITECTURES=" + ";".join(plan.archs)]
    if ninja := toolchain.find_ninja():
        arguments += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    else:
        arguments += ["-GUnix Makefiles"]
    return arguments + shlex.split(os.environ.get("CMAKE_ARGS", ""))


def build_tree(torch: toolchain.Torch, arguments: list[str]) -> Path:
    """A directory that outlives the build, so that the next one compiles only what changed.

    What CMake cannot change in a configured directory is part of its name, so that environments
    do not spoil each other's builds.
    """
    fixed = [a for a in arguments if a.startswith(("-G", "-DCMAKE_BUILD_TYPE"))]
    fixed += [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "CMAKE_ARGS")]
    digest = hashlib.sha256("\0".join(fixed).encode()).hexdigest()[:8]
    abi = sysconfig.get_config_var("SOABI")
    return ROOT / "build" / "cmake" / f"{abi}-torch{torch.version}-{digest}"


def configure(cmake: Path, tree: Path, arguments: list[str]) -> None:
    """Configure, from scratch where the cache of an earlier build no longer works."""
    command = [cmake, "-S", ROOT, "-B", tree, *arguments]
    if (tree / "CMakeCache.txt").exists():
        if subprocess.call(command) == 0:
            return
        command.append("--fresh")
    call(*command)


def call(*command: str | Path) -> None:
    """Run a step of the build, and end the build where it fails."""
    if subprocess.call(command) != 0:
        line = shlex.join(map(str, command))
        raise toolchain.BuildError(f"this step of the build failed, see its output above: {line}")


setup(
    # No sources: CMakeLists.txt knows them. The extension makes setuptools call build_ext and
    # name the wheel after this Python and platform.
    ext_modules=[Extension("grouped_conv._C", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)
