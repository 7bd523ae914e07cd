"""How much memory a training step takes at its peak, beyond parameters and input.

    python bench/torch_memory.py PEER SHAPE [--threads N]      one of torch_peers.py, in this process: bytes

On a CPU no allocator sees everything: torch's does not know of oneDNN's buffers, nor of those inside fusecell. So the
operating system is asked, in a process of its own for each measurement: the most that was resident during a step, less
what was before it. A step goes first, since code that is loaded for the first time is resident memory, too. malloc is
told to give freed memory back at once, so that what is counted is in use at the same time; glibc's malloc as it comes
keeps more than that (the eager loop's process grew by 1.4 times as much, fusecell's by 1.0 to 1.3 times).

On a GPU torch's own count is taken: fusecell's kernels get all of their memory from it.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def peak_bytes(peer: str, shape: str, device: str = "cpu", threads: int = 1) -> int:
    """Peak bytes of one training step of a peer at a shape, both by their names in torch_peers."""
    if device != "cpu":
        return _peak_on_gpu(peer, shape, device)
    command = [sys.executable, __file__, peer, shape, "--threads", str(threads)]
    environment = {**os.environ, **GIVE_BACK}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return int(done.stdout.split()[-1])


def _peak_on_gpu(peer: str, shape: str, device: str) -> int:
    import torch
    from torch_peers import PEERS, SHAPES, Problem

    made = PEERS[peer](Problem(SHAPES[shape], device))
    made.step()
    made.forget()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made.step()
    return int(torch.cuda.max_memory_allocated() - before)


def _peak_here(peer: str, shape: str, threads: int) -> int:
    import torch
    from torch_peers import PEERS, SHAPES, Problem

    import fusecell

    torch.set_num_threads(threads)
    fusecell.set_num_threads(threads)
    return peak_of_a_step(PEERS[peer](Problem(SHAPES[shape], "cpu")))


def peak_of_a_step(peer: Any) -> int:
    """In this process, which must have been started with GIVE_BACK in its environment. peer: has step(), forget()."""
    peer.step()
    peer.forget()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from here
    before = _resident("VmRSS")
    peer.step()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found, what
    return 1024 * int(found[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("shape")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sys.stdout.write(f"{_peak_here(args.peer, args.shape, args.threads)}\n")
