"""The operators whose cost is zero by convention: torch's own, which counts products only.

fvcore also counts norms and upsampling; `stagemeter.counting.fvcore_view` does not add them, so that its numbers are
the ones of the report. An operator that has no formula and is not here is listed in the report with its call count.

Four kinds are recognised by what torch says of the operator rather than by name: views, elementwise operators (tagged
``pointwise``), random numbers (tagged ``nondeterministic_seeded``) and everything outside of tensors' values
(``prim``, ``profiler``), communication included (``c10d``, ``fsdp``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

#: Making tensors.
_MAKING = """
    arange _efficientzerotensor empty empty_like empty_permuted empty_strided eye fill fill_ full full_like
    linspace logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor
    tril_indices triu_indices zero_ zeros zeros_like
"""
#: Moving and arranging elements, gathers and scatters, comparing, sorting, counting.
_ARRANGING = """
    alias allclose argmax argmin argsort as_strided_scatter _assert_async _assert_tensor_metadata bincount
    bucketize cat channel_shuffle channel_shuffle_ clone col2im constant_pad_nd contiguous copy copy_
    count_nonzero cummax _cummax_helper cummin _cummin_helper detach diag_embed diagonal_scatter embedding
    _embedding_bag _embedding_bag_forward_only embedding_dense_backward equal flip floor_divide
    _functional_assert_async gather histc im2col index index_add index_add_ index_copy index_copy_ index_fill
    index_put index_put_ _index_put_impl_ index_reduce index_select index_select_backward _is_all_true
    _is_any_true is_nonzero isin item kthvalue lift lift_fresh lift_fresh_copy _local_scalar_dense masked_fill
    masked_scatter masked_scatter_ masked_select max median min mode _nested_tensor_from_mask nonzero
    nonzero_static one_hot _pack_padded_sequence pad _pin_memory pixel_shuffle pixel_unshuffle polar put record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d _reshape_copy resize_ roll rot90 scatter scatter_ scatter_add
    scatter_add_ scatter_reduce searchsorted select_backward select_scatter set_ slice_backward slice_scatter
    sort split split_with_sizes_copy stack sym_numel sym_size sym_stride take _to_copy topk tril triu
    unfold_backward unfold_copy _unique2 unique_consecutive unique_dim _unsafe_index _unsafe_index_put
    unsafe_split unsafe_split_with_sizes _unsafe_view
"""
#: Reductions, norms, softmax, pooling, interpolation: work, but not products; zero by the same convention.
_REDUCING = """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator all amax amin aminmax any avg_pool1d avg_pool2d
    avg_pool2d_backward avg_pool3d avg_pool3d_backward batch_norm_backward _batch_norm_no_update
    _batch_norm_with_update binary_cross_entropy binary_cross_entropy_backward cudnn_batch_norm cumprod cumsum
    cumsum_ fractional_max_pool2d _fused_dropout _fused_rms_norm _fused_rms_norm_backward glu glu_backward
    grid_sampler_2d grid_sampler_3d huber_loss linalg_vector_norm log_sigmoid_backward log_sigmoid_forward
    _log_softmax _log_softmax_backward_data logcumsumexp logsumexp _masked_softmax max_pool2d_with_indices
    max_pool2d_with_indices_backward max_pool3d_with_indices mean mkldnn_max_pool2d mse_loss mse_loss_backward
    nansum native_batch_norm native_batch_norm_backward _native_batch_norm_legit
    _native_batch_norm_legit_no_training native_dropout native_dropout_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward nll_loss2d_backward nll_loss2d_forward
    nll_loss_backward nll_loss_forward norm prod renorm _safe_softmax smooth_l1_loss smooth_l1_loss_backward
    _softmax _softmax_backward_data std std_mean sum upsample_bicubic2d _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa_backward upsample_bicubic2d_backward upsample_bilinear2d _upsample_bilinear2d_aa
    upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d upsample_nearest2d
    upsample_nearest2d_backward upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_trilinear3d var var_mean _weight_norm_interface
"""
#: Names in ``torch.ops.aten`` of what is free.
ZERO_COST_NAMES: frozenset[str] = frozenset(f"{_MAKING} {_ARRANGING} {_REDUCING}".split())

#: Libraries of operators that do no arithmetic on tensors: bookkeeping, and moving tensors between processes.
_FREE_NAMESPACES: frozenset[str] = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "fsdp", "inductor", "prim", "prims"}
    | {"profiler"}
)

#: Operators that drop elements at random and are tagged as random numbers for it, but are made of products.
_PRODUCTS_WITH_DROPOUT: frozenset[str] = frozenset(
    {
        "_cudnn_rnn",
        "_efficient_attention_forward",
        "_flash_attention_forward",
        "_flash_attention_forward_no_dropout_inplace",
        "gru",
        "lstm",
        "miopen_rnn",
        "rnn_relu",
        "rnn_tanh",
    }
)


@cache
def is_zero_cost(operator: Any) -> bool:
    """Whether an operator overload costs nothing by convention.

    Parameters
    ----------
    operator : torch._ops.OpOverload
        As a dispatch mode receives it.
    """
    if operator.namespace in _FREE_NAMESPACES:
        return True
    name = operator._overloadpacket.__name__
    if operator.is_view or torch.Tag.pointwise in operator.tags:
        return True
    if torch.Tag.nondeterministic_seeded in operator.tags and name not in _PRODUCTS_WITH_DROPOUT:
        return True
    # In-place and out variants of an elementwise operator do not always carry its tag.
    functional = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    if functional is not None and any(is_zero_cost(getattr(functional, o)) for o in functional.overloads()):
        return True
    return operator.namespace == "aten" and name in ZERO_COST_NAMES
