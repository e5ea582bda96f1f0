"""PEP 517 build backend: setuptools, building against the torch that is already installed.

With torch among the build requirements every installation would download a second torch into the
isolated build environment. So it is required only where the environment that the installation goes
to has none. Both libraries use LibTorch's stable ABI and run with any later torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from toolchain import (
    MIN_CMAKE,
    MIN_TORCH,
    BuildError,
    check_compiler,
    find_cmake,
    find_ninja,
    find_torch,
    note,
)

Settings = dict[str, Any] | None

MIN_SETUPTOOLS = 77
if int(setuptools.__version__.split(".")[0]) < MIN_SETUPTOOLS:
    raise BuildError(
        f"setuptools >= {MIN_SETUPTOOLS} is needed, this is {setuptools.__version__}: "
        f'run `pip install --upgrade "setuptools>={MIN_SETUPTOOLS}"`'
    )


def _build_requirements() -> list[str]:
    check_compiler()
    requirements = []
    if find_torch() is None:
        note("no torch is installed: building against one that is fetched for the build")
        requirements.append("torch>=" + ".".join(map(str, MIN_TORCH)))
    if find_cmake() is None:
        requirements.append("cmake>=" + ".".join(map(str, MIN_CMAKE)))
    if find_ninja() is None and shutil.which("make") is None:
        requirements.append("ninja")
    return requirements


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Builds of one source tree share its build directory, so the second waits for the first."""
    import fcntl

    build = Path("build")
    build.mkdir(exist_ok=True)
    with open(build / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_sdist(config_settings)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _build_requirements()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _build_requirements()


def prepare_metadata_for_build_wheel(directory: str, config_settings: Settings = None) -> str:
    return build_meta.prepare_metadata_for_build_wheel(directory, config_settings)


def prepare_metadata_for_build_editable(directory: str, config_settings: Settings = None) -> str:
    return build_meta.prepare_metadata_for_build_editable(directory, config_settings)


def build_sdist(directory: str, config_settings: Settings = None) -> str:
    return build_meta.build_sdist(directory, config_settings)


def build_wheel(
    directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with _one_at_a_time():
        return build_meta.build_wheel(directory, config_settings, metadata_directory)


def build_editable(
    directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with _one_at_a_time():
        return build_meta.build_editable(directory, config_settings, metadata_directory)
