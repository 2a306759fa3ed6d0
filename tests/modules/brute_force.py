"""Counts by brute force, independent of the package: each product of a real run on the CPU."""

from collections import Counter

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


class BruteForce(TorchDispatchMode):
    """Multiply-accumulates of what runs inside of the block, with attention as the two products that it is of."""

    def __init__(self):
        super().__init__()
        self.macs = 0
        self.calls = Counter()
        #: Whether torch's own counter has the right formula for all that ran: it has none of some products, and counts
        #: each group of a convolution with all channels on the way back (torch 2.13, ``flop_counter.py``).
        self.known_to_torch = True
        self._kernel = None

    def __enter__(self):
        self._kernel = sdpa_kernel(SDPBackend.MATH)
        self._kernel.__enter__()
        # torch's fused path of transformer layers, in which no product is to be seen.
        torch.backends.mha.set_fastpath_enabled(False)
        return super().__enter__()

    def __exit__(self, *error):
        self._kernel.__exit__(*error)
        torch.backends.mha.set_fastpath_enabled(True)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        self.calls[name] += 1
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left = args[0] if name in ("mm", "bmm") else args[1]
            self.macs += out.numel() * left.shape[-1]
        elif name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            applied = x if transposed else out
            self.macs += applied.shape[0] * applied[0, 0].numel() * weight.numel()
        elif name == "convolution_backward":
            self.known_to_torch &= args[9] == 1
            gradient, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
            applied = x if transposed else gradient
            self.macs += applied.shape[0] * applied[0, 0].numel() * weight.numel() * (mask[0] + mask[1])
        elif name == "_grouped_mm":
            self.known_to_torch = False
            # Each row of the left operand meets one matrix of the right one.
            self.macs += args[0].numel() * args[1].shape[-1]
        elif name in ("mv", "addmv"):
            self.known_to_torch = False
            self.macs += args[-2].numel()
        return out


def brute_force_macs(model, *args, **kwargs) -> int:
    """Multiply-accumulates of a forward pass on real tensors."""
    with torch.no_grad(), BruteForce() as counted:
        model(*args, **kwargs)
    return counted.macs
