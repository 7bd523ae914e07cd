"""How a convolution on tensor cores is cut up: a pure function of its shape, its elements and the GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

_emulated: Any = pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")

# KiB of shared memory of a multiprocessor, and bytes that one block may ask for.
GPUS = {"sm_80": (164, 163 << 10), "sm_86": (100, 99 << 10), "sm_90": (228, 227 << 10)}
STATIC = 10 << 10  # of a block of the backward step, rounded up
KEPT = 1 << 10  # by the machine, of each block
PARKED = 64 << 10  # where a block's sums wait for its ending


class Choice(NamedTuple):
    rows: int
    pixels: int
    buffers: int
    shared_bytes: int
    warpgroups: bool


def choose(gpu: str = "sm_90", **of: Any) -> Choice:
    return Choice(*_emulated.tensor_choice(shared=GPUS[gpu][0] << 10, **of))


# The shapes of docs/cuda.md: groups of the gates of 16 channels, pixels of the batch, tiles of 64, 128 or 256 pixels.
@pytest.mark.parametrize(
    ("groups", "pixels", "tile"),
    [
        pytest.param(4, 16 * 64 * 64, (128, 128), id="16x20x64x64x64x64"),
        pytest.param(1, 4 * 64 * 64, (64, 64), id="4x10x1x16x64x64: 64 blocks of 256 pixels are too few"),
        pytest.param(4, 8 * 128 * 128, (128, 128), id="8x20x32x64x128x128"),
        pytest.param(2, 4 * 32 * 32, (64, 64), id="4x10x8x32x32x32"),
        pytest.param(8, 2 * 256 * 256, (128, 128), id="2x12x128x128x256x256"),
        pytest.param(1, 16 * 64 * 64, (64, 256), id="the sweep of the first, 64 channels: one group"),
    ],
)
def test_tiles_of_the_documented_shapes(groups: int, pixels: int, tile: tuple[int, int]) -> None:
    chosen = choose(groups=groups, pixels=pixels)
    assert (chosen.rows, chosen.pixels) == tile


@pytest.mark.parametrize(
    ("gpu", "square", "wide", "small"), [("sm_80", 2, 3, 4), ("sm_86", 2, 2, 4), ("sm_90", 3, 2, 4)]
)
def test_stages_of_each_gpu(gpu: str, square: int, wide: int, small: int) -> None:
    many = 10**6
    assert choose(gpu, groups=2, pixels=many).buffers == square
    assert choose(gpu, groups=1, pixels=many).buffers == wide
    assert choose(gpu, groups=2, pixels=64).buffers == small


@given(groups=st.integers(1, 70), pixels=st.integers(1, 10**7), gpu=st.sampled_from([*GPUS]))
def test_every_choice_can_be_launched(groups: int, pixels: int, gpu: str) -> None:
    chosen = choose(gpu, groups=groups, pixels=pixels)
    stage = (chosen.rows + chosen.pixels) * 128
    assert 2 <= chosen.buffers <= 4
    assert chosen.buffers * stage + 1024 == chosen.shared_bytes <= GPUS[gpu][1] - STATIC
    assert chosen.buffers * stage >= PARKED
    # As many as fit: a stage more has no room beside another block, or at all.
    of_block = chosen.shared_bytes + STATIC + KEPT
    blocks = min((GPUS[gpu][0] << 10) // of_block, 2)
    assert chosen.buffers == 4 or blocks * (of_block + stage) > GPUS[gpu][0] << 10


@given(groups=st.integers(1, 70), pixels=st.integers(1, 10**7), fewest=st.integers(1, 1000))
def test_tiles_are_small_where_large_ones_would_be_few(groups: int, pixels: int, fewest: int) -> None:
    chosen = choose(groups=groups, pixels=pixels, fewest=fewest)
    rows, across = (64, 256) if groups == 1 else (128, 128)
    large = -(-groups * 64 // rows) * -(-pixels // across)
    assert (chosen.rows, chosen.pixels) == ((64, 64) if large < fewest else (rows, across))


@pytest.mark.parametrize("groups", [1, 2])
def test_warpgroups_multiply_16_bits_in_large_tiles_on_hopper(groups: int) -> None:
    many = {"groups": groups, "pixels": 10**6}
    assert choose(hopper=True, **many).warpgroups
    assert not choose(hopper=False, **many).warpgroups
    assert not choose(hopper=True, element_bytes=4, **many).warpgroups
    assert not choose(hopper=True, groups=groups, pixels=64).warpgroups
