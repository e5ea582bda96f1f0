"""The one descriptor of a grouped 2-D convolution; mirrors ``csrc/problem.h``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Pass = Literal["fprop", "dgrad", "wgrad"]
PASSES: tuple[Pass, ...] = ("fprop", "dgrad", "wgrad")


def output_extent(size: int, kernel: int, padding: int, stride: int, dilation: int) -> int:
    """Output extent of one spatial dimension, zero or less where the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class ConvProblem:
    """Shapes of a grouped 2-D convolution, without data, dtype or layout.

    Tensors are ``x [N, C, H, W]``, ``w [K, C/G, R, S]`` and ``y [N, K, P, Q]``; ``C`` and ``K``
    are totals over the ``G`` groups. ``P`` and ``Q`` are derived and cannot be passed.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int = 3
    S: int = 3
    G: int = 1
    pad_h: int = 0
    pad_w: int = 0
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1

    @classmethod
    def from_sizes(
        cls,
        input_size: tuple[int, ...] | torch.Size,
        weight_size: tuple[int, ...] | torch.Size,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> ConvProblem:
        """Problem of a convolution of 4-D sizes ``[N, C, H, W]`` and ``[K, C/G, R, S]``."""
        n, c, h, w = input_size
        k, _, r, s = weight_size
        return cls(n, c, h, w, k, r, s, groups, *padding, *stride, *dilation)

    @classmethod
    def checked(
        cls,
        input_size: Sequence[int],
        weight_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> ConvProblem:
        """As :meth:`from_sizes`, for sizes and attributes that may be wrong or symbolic.

        Raises:
            RuntimeError: with ATen's wording, where ``csrc/checks.h`` raises it.
        """

        def check(condition: bool, message: str) -> None:
            torch._check(condition, lambda: message)

        x, w = list(input_size), list(weight_size)
        check(len(x) == 4, f"grouped_conv: expected 4-dimensional input, but got size {x}")
        check(len(w) == 4, f"grouped_conv: expected 4-dimensional weight, but got size {w}")
        for name, values, least in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        ):
            check(len(values) == 2, f"grouped_conv: {name} must have two elements")
            for value in values:
                check(value >= least, f"grouped_conv: {name} {list(values)} is not supported")
        check(groups >= 1, "non-positive groups is not supported")
        for extent in w:
            check(extent > 0, f"grouped_conv: expected a non-empty weight, but got size {w}")
        for extent in x:
            check(extent >= 0, f"grouped_conv: negative input size {x}")
        check(
            w[0] % groups == 0,
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {w} instead",
        )
        check(
            x[1] == w[1] * groups,
            f"Given groups={groups}, weight of size {w}, expected input{x} to have "
            f"{w[1] * groups} channels, but got {x[1]} channels instead",
        )
        for i in range(2):
            reach = dilation[i] * (w[2 + i] - 1) + 1
            check(
                x[2 + i] + 2 * padding[i] >= reach,
                f"Kernel size can't be greater than actual input size: input {x}, padding "
                f"{list(padding)}, weight {w}, dilation {list(dilation)}",
            )
        return cls.from_sizes(
            (x[0], x[1], x[2], x[3]),
            (w[0], w[1], w[2], w[3]),
            (stride[0], stride[1]),
            (padding[0], padding[1]),
            (dilation[0], dilation[1]),
            groups,
        )

    @property
    def P(self) -> int:
        """Output height."""
        return output_extent(self.H, self.R, self.pad_h, self.stride_h, self.dilation_h)

    @property
    def Q(self) -> int:
        """Output width."""
        return output_extent(self.W, self.S, self.pad_w, self.stride_w, self.dilation_w)

    @property
    def c_per_group(self) -> int:
        """Input channels per group."""
        return self.C // self.G

    @property
    def k_per_group(self) -> int:
        """Output channels per group."""
        return self.K // self.G

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """``[N, C, H, W]``."""
        return (self.N, self.C, self.H, self.W)

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        """``[K, C/G, R, S]``."""
        return (self.K, self.c_per_group, self.R, self.S)

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        """``[N, K, P, Q]``."""
        return (self.N, self.K, self.P, self.Q)

    @property
    def stride(self) -> tuple[int, int]:
        return (self.stride_h, self.stride_w)

    @property
    def padding(self) -> tuple[int, int]:
        return (self.pad_h, self.pad_w)

    @property
    def dilation(self) -> tuple[int, int]:
        return (self.dilation_h, self.dilation_w)

    @property
    def flops(self) -> int:
        """Floating-point operations of any one pass; a multiply-add counts as two.

        Taps that fall into the padding are counted, as is customary in the literature.
        """
        return 2 * self.N * self.K * self.P * self.Q * self.c_per_group * self.R * self.S

    def min_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that any one pass must move: each of x, w and y crosses memory once."""
        n_x = self.N * self.C * self.H * self.W
        n_w = self.K * self.c_per_group * self.R * self.S
        n_y = self.N * self.K * self.P * self.Q
        return (n_x + n_w + n_y) * dtype.itemsize

    def __str__(self) -> str:
        text = f"N{self.N} C{self.C} {self.H}x{self.W} K{self.K} G{self.G} {self.R}x{self.S}"
        text += f" s{self.stride_h}" if self.stride_h == self.stride_w else f" s{self.stride}"
        text += f" p{self.pad_h}" if self.pad_h == self.pad_w else f" p{self.padding}"
        if self.dilation != (1, 1):
            text += f" d{self.dilation}"
        return text
