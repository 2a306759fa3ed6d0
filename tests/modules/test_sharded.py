"""Data parallelism, sharded or not: the same work in other wrappers."""

import pytest
import torch
from nets import Block, Transformer
from torch import distributed, nn

import stagemeter

STAGES = {"first": "blocks.0", "head": "head"}


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def replicated():
    return nn.parallel.DistributedDataParallel(Transformer())


def sharded():
    from torch.distributed.fsdp import fully_shard

    mesh, model = distributed.device_mesh.init_device_mesh("cpu", (1,)), Transformer()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrapped():
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy({Block})
    return FullyShardedDataParallel(Transformer(), device_id=torch.device("cpu"), auto_wrap_policy=policy)


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize(
    ("make", "note"),
    [
        (replicated, None),
        (sharded, "the pass ran on real tensors, since it holds tensors of other classes (DTensor)"),
        (wrapped, "the pass ran on real tensors, since FSDP's wrapper cannot be copied"),
    ],
)
def test_the_same_work_in_a_wrapper(make, note, mode):
    x = torch.randn(2, 5, 16)
    plain = stagemeter.analyze(Transformer(), x, stages=STAGES, mode=mode)
    report = stagemeter.analyze(make(), x, stages=STAGES, mode=mode)
    assert {name: stage.macs for name, stage in report.stages.items()} == {
        name: stage.macs for name, stage in plain.stages.items()
    }
    assert report.total.macs == plain.total.macs
    assert report.total.params == plain.total.params
    assert report.notes[:1] == (() if note is None else (note,))
    assert not report.unsupported
