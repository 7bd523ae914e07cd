"""Two processes on one machine train what one process trains with the joined batch: DDP, FSDP2, clipping."""

from __future__ import annotations

import datetime
import functools
import time

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

from torch import distributed, nn  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from fusecell.torch import ConvLSTM2d, clip_grad_norm_, clip_grad_value_  # noqa: E402

WORLD, STEPS, BATCH = 2, 3, 4
TIMEOUT = datetime.timedelta(seconds=60)  # a process that waits for one that died gives up
MAX_NORM, MAX_VALUE = 1.0, 0.03  # a fraction of what the gradients have


class Forecaster(nn.Module):
    """Bidirectional, so that no parameter is like another; of its two heads only one is used."""

    def __init__(self, *, recompute=False, checkpointed=False):
        super().__init__()
        self.lstm = ConvLSTM2d(
            1, 3, 3, num_layers=2, bidirectional=True, batch_first=True, peephole="channel", recompute=recompute
        )
        self.head, self.idle_head = nn.Conv2d(6, 1, 1), nn.Conv2d(6, 1, 1)
        self.checkpointed = checkpointed

    def forward(self, x):
        y, (h_n, _) = checkpoint(self.lstm, x, use_reentrant=False) if self.checkpointed else self.lstm(x)
        return self.head(y[:, -1]) + h_n.mean((0, 2)).unsqueeze(1)


def forecaster(**options):
    torch.manual_seed(0)
    model = Forecaster(**options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "peephole" in name:  # 0 would hide them
                parameter.normal_(std=0.3)
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 4, 1, 6, 5, dtype=torch.float64, generator=generator)


def no_clipping(parameters):
    del parameters


def clip_norm(parameters):
    norm = clip_grad_norm_(parameters, MAX_NORM)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    assert norm > MAX_NORM, "nothing to clip: this would prove nothing"


def clip_value(parameters):
    clip_grad_value_(parameters, MAX_VALUE)


CLIPPING = {"none": no_clipping, "norm": clip_norm, "value": clip_value}


def train(model, x, clipping):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x[:, :-1]) - x[:, -1]).square().flatten(1).sum(1).mean().backward()
        clipping(list(model.parameters()))
        optimizer.step()


@functools.cache
def alone(clipping):
    """The parameters after one process has trained on the whole batch."""
    torch.set_num_threads(1)
    model = forecaster()
    train(model, data(), CLIPPING[clipping])
    return {name: p.detach() for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------------------- two processes
def ddp(model, **options):
    return DistributedDataParallel(model, **options), model


def without_idle_head(**options):
    """For those that expect a gradient of every parameter."""
    model = forecaster(**options)
    model.idle_head.requires_grad_(False)
    return model


def fsdp():
    model = forecaster()
    mesh = distributed.init_device_mesh("cpu", (WORLD,))
    fully_shard(model.lstm, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())["lstm.weight_hh_l0"]
    assert isinstance(sharded, DTensor)
    assert sharded.to_local().shape[0] == sharded.shape[0] // WORLD
    return model, model


WRAPPED = {
    "ddp": lambda: ddp(without_idle_head()),
    "ddp, unused parameters": lambda: ddp(forecaster(), find_unused_parameters=True),
    "ddp, static graph": lambda: ddp(forecaster(checkpointed=True), static_graph=True),
    "ddp, recompute, gradients as views": lambda: ddp(without_idle_head(recompute=True), gradient_as_bucket_view=True),
    "fsdp": fsdp,
}


def whole(parameter):
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def worker(rank, folder, wrapping):
    """One process: its half of the batch, each kind of clipping; the first one keeps the results."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=TIMEOUT)
    share = BATCH // WORLD
    half = data()[rank * share : (rank + 1) * share]
    for name, clipping in CLIPPING.items():
        wrapper, model = WRAPPED[wrapping]()
        train(wrapper, half, clipping)
        found = {n: whole(p) for n, p in model.named_parameters()}
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")
        # Before the group: a DistributedDataParallel that outlives it joins the group's threads as it goes, holding
        # Python's lock, for which one of them may be waiting.
        del wrapper, model
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_two_processes_train_what_one_trains_with_the_joined_batch(wrapping, tmp_path):
    processes = torch.multiprocessing.spawn(worker, (str(tmp_path), wrapping), nprocs=WORLD, join=False)
    end = time.monotonic() + 3 * TIMEOUT.total_seconds()
    while not processes.join(timeout=1):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes did not end")
    found = {name: torch.load(tmp_path / f"{name}.pt") for name in CLIPPING}
    torch.testing.assert_close(found, {name: alone(name) for name in CLIPPING}, rtol=1e-10, atol=1e-12)


def test_clipping_changes_the_result():
    """What the test above compares: three different ends, none of them where training began."""
    ends = [{n: p.detach() for n, p in forecaster().named_parameters()}, *map(alone, CLIPPING)]
    for name in ("lstm.weight_hh_l0", "lstm.peephole_l1_reverse"):
        for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
            assert (ends[a][name] - ends[b][name]).abs().max() > 1e-4, (name, a, b)
