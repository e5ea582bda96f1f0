"""What a build finds on the machine, and what it decides from that.

Standard library only: the build backend imports it before anything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MIN_TORCH = (2, 11)
MIN_CMAKE = (3, 24)
MIN_CUDA_ARCH = (8, 0)
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"
NAMED_CUDA_ARCHS = {
    "ampere": "8.0;8.6+PTX",
    "ada": "8.9+PTX",
    "hopper": "9.0+PTX",
    "blackwell": "10.0;12.0+PTX",
}


class BuildError(SystemExit):
    """Ends the build with one message and without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"grouped_conv: {message}")


def note(message: str) -> None:
    """Tell the user something about the build; pip shows it with -v."""
    print(f"grouped_conv: {message}", file=sys.stderr, flush=True)


def output_of(*command: str | Path, cwd: Path | None = None) -> str | None:
    """Standard output of a command, or None where it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# torch -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package directory and what its version.py says."""

    directory: Path
    version: str
    cuda: str | None


def read_torch(directory: Path) -> Torch:
    """Describe the torch in ``directory`` without importing it."""
    if not (directory / "version.py").is_file():
        raise BuildError(f"{directory} is not the directory of an installed torch package")
    facts = runpy.run_path(str(directory / "version.py"))
    return Torch(directory, str(facts["__version__"]), facts.get("cuda"))


def check_torch(torch: Torch) -> Torch:
    """Refuse a torch whose stable ABI is older than what the sources are written for."""
    wanted = ".".join(map(str, MIN_TORCH))
    if _version(torch.version) < MIN_TORCH:
        raise BuildError(
            f"torch >= {wanted} is needed, but {torch.directory} holds {torch.version}: "
            f'run `pip install --upgrade "torch>={wanted}"`'
        )
    if not (torch.directory / "include/torch/csrc/stable/library.h").is_file():
        raise BuildError(f"the torch in {torch.directory} comes without its C++ headers")
    return torch


def _torch_of(interpreter: Path) -> Path | None:
    query = "import importlib.util as u; print(u.find_spec('torch').origin)"
    # Not in the source tree: `python -c` looks for modules in its working directory first.
    origin = output_of(interpreter, "-E", "-c", query, cwd=interpreter.parent)
    return Path(origin).parent if origin else None


def find_torch(environ: Mapping[str, str] = os.environ) -> Torch | None:
    """The torch to build against, or None.

    GROUPED_CONV_TORCH_DIR decides if it is set. Else it is the torch that this process could
    import; else that of the environment the installation goes to. Build isolation hides the
    latter from this process by way of PYTHONPATH, which ``python -E`` does not read.
    """
    if named := environ.get("GROUPED_CONV_TORCH_DIR"):
        return check_torch(read_torch(Path(named).expanduser().absolute()))
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        return check_torch(read_torch(Path(spec.origin).parent))
    if directory := _torch_of(Path(sys.executable)):
        return check_torch(read_torch(directory))
    # A front end that builds in an environment of its own leaves only a hint of the one in use.
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(name)
        if prefix and (directory := _torch_of(Path(prefix, "bin", "python"))):
            torch = read_torch(directory)
            if _version(torch.version) >= MIN_TORCH:
                return check_torch(torch)
    return None


# Tools -----------------------------------------------------------------------------------------


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_tools(name: str) -> Iterator[Path]:
    """Programs on PATH, then beside the running Python (a virtual environment not activated)."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for directory in [*directories, str(Path(sys.executable).parent)]:
        if directory and (found := shutil.which(name, path=directory)):
            yield Path(found)


def find_cmake() -> Path | None:
    """A CMake that is new enough and runs (build isolation breaks that of the environment)."""
    for cmake in find_tools("cmake"):
        if _version(output_of(cmake, "--version") or "") >= MIN_CMAKE:
            return cmake
    return None


def find_ninja() -> Path | None:
    """A Ninja that runs."""
    return next((path for path in find_tools("ninja") if output_of(path, "--version")), None)


def check_compiler(environ: Mapping[str, str] = os.environ) -> None:
    """Say what to install where a C++ compiler or Python's headers are missing."""
    if sys.platform != "linux":
        raise BuildError(f"only Linux is supported, this is {sys.platform}")
    named = environ.get("CXX", "").split()
    names = named[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        what = f"CXX={named[0]} cannot be run" if named else "no C++ compiler was found"
        raise BuildError(
            f"{what}: install one that knows C++20 (GCC 11 or Clang 14 and later; on Debian and "
            "Ubuntu `apt install g++`, on Fedora `dnf install gcc-c++`) or name one in CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise BuildError(
            "Python.h was not found: install the headers of this Python (on Debian and Ubuntu "
            "`apt install python3-dev`, on Fedora `dnf install python3-devel`)"
        )


# CUDA ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path
    version: str


@dataclass(frozen=True)
class CudaPlan:
    """Build the CUDA kernels with ``nvcc`` for ``archs``, or do not, for a reason."""

    nvcc: Nvcc | None = None
    archs: tuple[str, ...] = ()
    absent_reason: str | None = None


def find_nvcc(environ: Mapping[str, str] = os.environ) -> Nvcc | None:
    """The nvcc of CUDA_HOME if that is set, else of PATH, else of /usr/local/cuda."""
    if home := environ.get("CUDA_HOME") or environ.get("CUDA_PATH"):
        candidates = [str(Path(home, "bin", "nvcc"))]
    else:
        candidates = ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if (found := shutil.which(candidate)) and (text := output_of(found, "--version")):
            release = re.search(r"release (\d+\.\d+)", text)
            return Nvcc(Path(found), release[1] if release else "unknown")
    return None


def visible_cuda_archs(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Compute capabilities of this machine's GPUs, such as ["9.0"]."""
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    listed = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") or ""
    archs = {line.strip() for line in listed.splitlines()}
    return sorted((a for a in archs if re.fullmatch(r"\d+\.\d", a)), key=_version)


def parse_arch_list(text: str) -> tuple[str, ...]:
    """CMake's names for the architectures of a TORCH_CUDA_ARCH_LIST.

    "8.0;9.0+PTX" is ("80-real", "90-real", "90-virtual"). Architectures older than the kernels
    support are left out: lists that are set for a whole machine often name them.
    """
    archs: list[str] = []
    for entry in re.split(r"[;,\s]+", text.strip(" ;,\n\t")):
        expanded = NAMED_CUDA_ARCHS.get(entry.lower(), entry)
        for arch in expanded.split(";"):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
            if not match:
                raise BuildError(
                    f"TORCH_CUDA_ARCH_LIST: {arch!r} is not an architecture; "
                    f'write, for example, "{DEFAULT_CUDA_ARCHS}"'
                )
            major, minor, suffix, ptx = match.groups()
            if (int(major), int(minor)) >= MIN_CUDA_ARCH:
                archs.append(f"{major}{minor}{suffix}-real")
                if ptx:
                    archs.append(f"{major}{minor}{suffix}-virtual")
    return tuple(dict.fromkeys(archs))


def parse_force(text: str | None) -> bool | None:
    """FORCE_CUDA: True, False, or None where it is not set."""
    value = (text or "").strip().upper()
    if value in ("1", "ON", "YES", "TRUE"):
        return True
    if value in ("0", "OFF", "NO", "FALSE"):
        return False
    if value:
        raise BuildError(f"FORCE_CUDA={text!r} is neither 1 nor 0")
    return None


def plan_cuda(
    torch: Torch,
    nvcc: Nvcc | None,
    visible: Iterable[str],
    *,
    force: bool | None = None,
    arch_list: str | None = None,
) -> CudaPlan:
    """Decide whether the CUDA kernels are built, and for which architectures.

    An explicit ``arch_list`` wins over the GPUs that are visible, as everywhere around torch.
    """
    if force is False:
        return CudaPlan(absent_reason="FORCE_CUDA=0 was set")
    if nvcc is None:
        if force:
            raise BuildError(
                "FORCE_CUDA=1, but no nvcc was found: install the CUDA toolkit and put nvcc on "
                "PATH or name its directory in CUDA_HOME, or unset FORCE_CUDA"
            )
        if torch.cuda is None:
            return CudaPlan(absent_reason=f"torch {torch.version} is built without CUDA")
        return CudaPlan(absent_reason="no nvcc was found (CUDA_HOME, PATH, /usr/local/cuda)")
    if not force:
        if torch.cuda is None:
            return CudaPlan(
                absent_reason=f"torch {torch.version} is built without CUDA "
                "(FORCE_CUDA=1 compiles the CUDA kernels nevertheless)"
            )
        if _version(nvcc.version)[0] != _version(torch.cuda)[0]:
            return CudaPlan(
                absent_reason=f"nvcc is of CUDA {nvcc.version}, torch {torch.version} of CUDA "
                f"{torch.cuda} (CUDA_HOME names another toolkit)"
            )
    if arch_list and arch_list.strip():
        source, archs = "TORCH_CUDA_ARCH_LIST", parse_arch_list(arch_list)
    elif listed := ";".join(visible):
        source, archs = "the GPUs of this machine", parse_arch_list(listed + "+PTX")
    else:
        source, archs = "the defaults", parse_arch_list(DEFAULT_CUDA_ARCHS)
    if not archs:
        oldest = ".".join(map(str, MIN_CUDA_ARCH))
        reason = f"the kernels need compute capability {oldest} or newer, {source} name none"
        if force:
            raise BuildError(f"FORCE_CUDA=1, but {reason}")
        return CudaPlan(absent_reason=reason)
    return CudaPlan(nvcc, archs)
