from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch: str
    compiler: str
    build_type: str
    cuda: str | None
    cuda_architectures: list[str]
    cuda_absent_reason: str | None

def build_info() -> BuildInfo: ...
def cpu_features() -> dict[str, bool]: ...
