"""Products of distributed tensors count at their whole shape, as docs/any-module.md says."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import stagemeter


@pytest.fixture
def mesh():
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


def test_tensor_parallel_products_are_those_of_all_ranks(mesh):
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    with stagemeter.count() as counted:
        model(torch.randn(4, 8))
    assert counted.flops == 2 * 2 * 4 * 8 * 16
    assert stagemeter.analyze(model, torch.randn(4, 8)).total.flops == counted.flops
