"""The drop-in layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.utils import _pair

from grouped_conv.functional import grouped_conv2d, grouped_conv2d_affine


class GroupedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d`, computed by :func:`grouped_conv.grouped_conv2d`.

    Same arguments, parameters, state_dict, initialisation, results and errors. Shapes: input
    ``[N, C, H, W]`` or ``[C, H, W]``, weight ``[K, C/groups, R, S]``, output ``[N, K, P, Q]`` or
    ``[K, P, Q]``, any dtype and memory format that nn.Conv2d takes. In TorchScript, which knows
    neither Python nor our choice of backend, it is PyTorch's own convolution.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            if is_scripting():
                return F.conv2d(
                    input, weight, bias, self.stride, _pair(0), self.dilation, self.groups
                )
            return grouped_conv2d(
                input, weight, bias, self.stride, (0, 0), self.dilation, self.groups
            )
        if is_scripting():
            return F.conv2d(
                input, weight, bias, self.stride, self.padding, self.dilation, self.groups
            )
        return grouped_conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class LazyGroupedConv2d(nn.LazyConv2d):
    """:class:`torch.nn.LazyConv2d` that becomes a :class:`GroupedConv2d` at its first input."""

    cls_to_become = GroupedConv2d


class GroupedConvReLU2d(GroupedConv2d):
    """A :class:`GroupedConv2d` and the relu behind it, in one pass over the output.

    What :func:`grouped_conv.fuse_grouped_conv_bn_` makes of a layer. Shapes, dtypes and parameters
    are those of GroupedConv2d.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return grouped_conv2d_affine(
            input,
            weight,
            bias,
            activation="relu",
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )
