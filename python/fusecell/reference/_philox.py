"""Random numbers that are the same on every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOW32 = 0xFFFFFFFF
Words = NDArray[np.uint64]  # each holds 32 bits


def philox4x32_10(counter: Sequence[Words], key: tuple[int, int]) -> list[Words]:
    """Ten rounds of Philox4x32: four words of counter and two of key in, four words out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)  # the product of two words fits 64 bits
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = high(p1) ^ c1 ^ np.uint64(k0), low(p1), high(p0) ^ c3 ^ np.uint64(k1), low(p0)
        k0, k1 = (k0 + 0x9E3779B9) & LOW32, (k1 + 0xBB67AE85) & LOW32
    return [c0, c1, c2, c3]


def high(words: Words) -> Words:
    return words >> np.uint64(32)


def low(words: Words) -> Words:
    return words & np.uint64(LOW32)


def bernoulli(shape: tuple[int, ...], rate: float, *, seed: int, offset: int = 0, stream: int = 0) -> NDArray[np.uint8]:
    """uint8 of ``shape``, each 1 with probability ``rate``, 0 to 1.

    Philox4x32-10 (Salmon et al. 2011), key = (low, high 32 bits of ``seed``). Element e, counted in C
    order, is lane e % 4 of the block whose counter is offset + e // 4 (64 bits, low word first), ``stream``,
    0. It is 1 where its word < floor(rate 2^32 + 0.5).
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate: expected 0 to 1, got {rate}")
    size = math.prod(shape)
    block = np.arange((size + 3) // 4, dtype=np.uint64) + np.uint64(offset % 2**64)  # wraps at 2^64
    counter = [low(block), high(block), np.full_like(block, stream), np.zeros_like(block)]
    words = np.stack(philox4x32_10(counter, (seed & LOW32, seed >> 32 & LOW32)), axis=1)
    ones = words.reshape(-1)[:size] < np.uint64(math.floor(rate * 2**32 + 0.5))
    return ones.astype(np.uint8).reshape(shape)
