from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch: str
    compiler: str
    build_type: str
    cuda: str | None
    cuda_architectures: list[str]
    cuda_absent_reason: str | None

class CudaKernel(TypedDict):
    name: str
    passes: list[str]
    c_per_group: int
    stride: int
    threads: int
    shared_bytes: int
    blocks_per_sm: int

class TiledKernel(TypedDict):
    name: str
    passes: list[str]
    channels: int
    groups: int
    threads: int
    shared_bytes: int
    blocks_per_sm: int
    blocks_of_fma: int

class TiledWgradKernel(TypedDict):
    name: str
    rows: int
    cols: int
    groups: int
    threads: int
    shared_bytes: int
    blocks_per_sm: int

class CudaPlan(TypedDict):
    name: str
    blocks: int
    threads: int
    shared_bytes: int
    workspace_bytes: int

class TiledPlan(CudaPlan):
    chunks: int
    tile_channels: int

def build_info() -> BuildInfo: ...
def cpu_features() -> dict[str, bool]: ...
def compiled_isas() -> list[str]: ...
def cpu_isa() -> str: ...
def direct_refusal(extents: list[int], dtype: str) -> str | None: ...
def cuda_kernels() -> list[CudaKernel]: ...
def nchw_kernels() -> list[CudaKernel]: ...
def rowstream_refusal(
    which: str, extents: list[int], dtype: str, channels_last: bool = True
) -> str | None: ...
def plan_fast(
    which: str, extents: list[int], sm_count: int, channels_last: bool = True
) -> CudaPlan: ...
def tiled_kernels() -> list[TiledKernel]: ...
def tiled_wgrad_kernels() -> list[TiledWgradKernel]: ...
def tiled_refusal(which: str, extents: list[int], dtype: str) -> str | None: ...
def plan_tiled(
    which: str,
    extents: list[int],
    sm_count: int,
    dtype: str,
    channels_last: bool = True,
    allow_tf32: bool = False,
) -> TiledPlan: ...
def output_extent(size: int, kernel: int, padding: int, stride: int, dilation: int) -> int: ...
