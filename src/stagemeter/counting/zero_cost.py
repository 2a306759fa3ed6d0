"""The operators whose cost is zero by convention: torch's own, which counts products only.

fvcore also counts norms and upsampling; `stagemeter.counting.fvcore_view` does not add them, so that its numbers are
the ones of the report. An operator that has no formula and is not here is listed in the report with its call count.

Four kinds are recognised by what torch says of the operator rather than by name: views, elementwise operators (tagged
``pointwise``), random numbers (tagged ``nondeterministic_seeded``) and everything outside of tensors' values
(``prim``, ``profiler``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

#: Names in ``torch.ops.aten``. Grouped by why they are free.
ZERO_COST_NAMES: frozenset[str] = frozenset(
    # Making tensors.
    """
    arange empty empty_like empty_permuted empty_strided eye fill fill_ full full_like linspace logspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices zero_ zeros
    zeros_like _efficientzerotensor
    """.split()
    # Moving and arranging elements, gathers and scatters, comparing, sorting, counting.
    + """
    _index_put_impl_ _local_scalar_dense _pack_padded_sequence _reshape_copy _to_copy _unique2 _unsafe_index
    _unsafe_index_put _unsafe_view alias argmax argmin argsort as_strided_scatter bincount bucketize cat clone
    constant_pad_nd contiguous copy copy_ count_nonzero detach diag_embed diagonal_scatter embedding flip gather
    histc index index_add index_add_ index_copy index_copy_ index_fill index_put index_put_ index_reduce index_select
    is_nonzero isin item kthvalue lift lift_fresh lift_fresh_copy masked_fill masked_scatter masked_scatter_
    floor_divide masked_select max median min mode nonzero nonzero_static one_hot pad put reflection_pad1d reflection_pad2d
    reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize_ roll rot90
    scatter scatter_ scatter_add scatter_add_ scatter_reduce searchsorted select_scatter set_ slice_scatter sort split
    split_with_sizes_copy stack take topk tril triu unfold_copy unique_consecutive unique_dim _is_all_true
    _is_any_true equal allclose _nested_tensor_from_mask _cummax_helper _cummin_helper cummax cummin col2im im2col
    embedding_dense_backward _embedding_bag _embedding_bag_forward_only slice_backward select_backward
    index_select_backward unfold_backward pixel_shuffle pixel_unshuffle channel_shuffle channel_shuffle_ record_stream
    _assert_async _assert_tensor_metadata _functional_assert_async sym_size sym_numel sym_stride _pin_memory
    """.split()
    # Reductions, norms, softmax, pooling, interpolation: work, but not products; zero by the same convention.
    + """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    _batch_norm_no_update _batch_norm_with_update _fused_dropout _fused_rms_norm
    _fused_rms_norm_backward _log_softmax _log_softmax_backward_data _masked_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _safe_softmax _softmax _softmax_backward_data _weight_norm_interface
    adaptive_max_pool2d adaptive_max_pool3d all amax amin aminmax any avg_pool1d avg_pool2d avg_pool2d_backward
    avg_pool3d avg_pool3d_backward cudnn_batch_norm batch_norm_backward native_batch_norm_backward cumprod cumsum
    cumsum_ fractional_max_pool2d glu glu_backward grid_sampler_2d grid_sampler_3d linalg_vector_norm logcumsumexp
    logsumexp max_pool2d_with_indices max_pool2d_with_indices_backward max_pool3d_with_indices mean
    mkldnn_max_pool2d native_batch_norm native_dropout native_dropout_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward nansum norm prod renorm std std_mean sum
    var var_mean nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward mse_loss mse_loss_backward
    smooth_l1_loss smooth_l1_loss_backward huber_loss binary_cross_entropy binary_cross_entropy_backward
    affine_grid_generator _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_bicubic2d
    upsample_bicubic2d_backward upsample_bilinear2d upsample_bilinear2d_backward upsample_linear1d
    upsample_linear1d_backward upsample_nearest1d upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_trilinear3d
    """.split()
)

_ZERO_COST_TAGS = (torch.Tag.pointwise, torch.Tag.nondeterministic_seeded)


@cache
def is_zero_cost(operator: Any) -> bool:
    """Whether an operator overload costs nothing by convention.

    Parameters
    ----------
    operator : torch._ops.OpOverload
        As a dispatch mode receives it.
    """
    if operator.namespace in {"prim", "prims", "profiler", "inductor"}:
        return True
    if operator.is_view or any(tag in operator.tags for tag in _ZERO_COST_TAGS):
        return True
    # In-place and out variants of an elementwise operator do not always carry its tag.
    name = operator._overloadpacket.__name__
    functional = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    if functional is not None and any(is_zero_cost(getattr(functional, o)) for o in functional.overloads()):
        return True
    return operator.namespace == "aten" and name in ZERO_COST_NAMES
