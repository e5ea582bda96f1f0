"""What was measured on which machine: names and versions for the header of every result."""

from __future__ import annotations

import datetime
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from grouped_conv._version import __version__

_DEFAULT_CACHE = 64 << 20
_TELLING_VARIABLES = ("GROUPED_CONV_", "OMP_", "KMP_", "ONEDNN_", "DNNL_", "MKL_")


@dataclass(frozen=True)
class Machine:
    """The device, the libraries and the settings of the process that bear on a timing."""

    device: str
    name: str
    isa: str
    threads: int
    cores: int
    last_level_cache: int
    python: str
    torch: str
    grouped_conv: str
    library: str
    system: str
    date: str
    environment: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The header's lines."""
        cache = f"{self.last_level_cache / 2**20:.0f} MiB last-level cache"
        device = f"{self.name}, {self.isa}, {cache}"
        if self.device == "cpu":
            device += f", {self.threads} threads on {self.cores} cores"
        versions = f"grouped_conv {self.grouped_conv}, torch {self.torch}, {self.library}"
        lines = [device, f"{versions}, Python {self.python}, {self.system}, {self.date}"]
        if self.environment:
            lines.append(" ".join(f"{k}={v}" for k, v in self.environment.items()))
        return lines


def describe(device: torch.device) -> Machine:
    """The machine as this process sees it."""
    now = datetime.datetime.now(datetime.timezone.utc)
    on_cuda = device.type == "cuda"
    return Machine(
        device=device.type,
        name=torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        isa=_cuda_architecture(device) if on_cuda else cpu_isa(),
        threads=torch.get_num_threads(),
        cores=available_cores(),
        last_level_cache=last_level_cache(device),
        python=platform.python_version(),
        torch=torch.__version__,
        grouped_conv=__version__,
        library=_cuda_libraries() if on_cuda else f"oneDNN {onednn_version()}",
        system=f"{platform.system()} {platform.machine()}",
        date=now.strftime("%Y-%m-%d %H:%M UTC"),
        environment={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_TELLING_VARIABLES) and os.sep not in value
        },
    )


def available_cores() -> int:
    """Logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo(key: str) -> str:
    """First value of ``key`` in Linux' /proc/cpuinfo, or an empty string."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def cpu_name() -> str:
    """The processor's marketing name; family and model too where the name says little."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    if not re.search(r"\d", name) and _cpuinfo("model"):
        name += f" (family {_cpuinfo('cpu family')}, model {_cpuinfo('model')})"
    return name


def cpu_isa() -> str:
    """The vector instruction set that PyTorch chose, and bf16 arithmetic where there is any."""
    isa = torch.backends.cpu.get_cpu_capability()
    flags = _cpuinfo("flags").split()
    extra = [name for name in ("avx512_bf16", "avx512_fp16", "amx_bf16") if name in flags]
    return "+".join([isa, *extra])


def onednn_version() -> str:
    """Version of the oneDNN that PyTorch was built with."""
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return found[1] if found else "absent"


def _cuda_architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _cuda_libraries() -> str:
    cudnn = torch.backends.cudnn.version()
    if cudnn is None:
        return f"CUDA {torch.version.cuda}, no cuDNN"
    major, rest = divmod(cudnn, 10000)
    return f"CUDA {torch.version.cuda}, cuDNN {major}.{rest // 100}.{rest % 100}"


def last_level_cache(device: torch.device) -> int:
    """Bytes of cache that a buffer must outgrow to be cold; 64 MiB where it cannot be found out."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", _DEFAULT_CACHE))
    sizes: dict[tuple[int, str], int] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            shared = (index / "shared_cpu_list").read_text().strip()
            kind = (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdigit():
            sizes[level, shared] = int(size[:-1]) << 10
    deepest = max((level for level, _ in sizes), default=0)
    total = sum(size for (level, _), size in sizes.items() if level == deepest)
    return total or _DEFAULT_CACHE
