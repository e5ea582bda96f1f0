"""Random numbers that depend on what they are for, and not on what was drawn before.

Every use of chance in training takes a seed made of the run's seed, a name and its place (epoch,
step, sample, process). So there is no generator whose state a checkpoint would have to keep, and a
run does not change with the number of processes that load data.
"""

from __future__ import annotations

import hashlib

import torch


def mixed_seed(*parts: int | str) -> int:
    """A number of 63 bits that is a hash of all parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded with :func:`mixed_seed`."""
    return torch.Generator().manual_seed(mixed_seed(*parts))
