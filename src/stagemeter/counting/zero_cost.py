"""The operators whose cost is zero by torch's own convention, which counts only products.

fvcore also counts norms and upsampling; `stagemeter.counting.fvcore_view` does not, so that it equals the report. The
report lists an operator that has no formula and is not here, with its call count.

Torch itself marks three kinds as free: views and elementwise operators (tagged ``pointwise``) of its library ``aten``,
and everything outside of tensors' values (``prim``, ``profiler``), communication included (``c10d``, ``fsdp``).
Operators of other libraries may carry the same tags and still multiply matrices, so their tags do not count.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from stagemeter.counting.registry import is_of_torch

#: Making tensors.
_MAKING = """
    arange bartlett_window blackman_window _efficientzerotensor empty empty_like empty_permuted empty_quantized
    empty_strided eye fft_fftfreq fft_rfftfreq fill fill_ from_file full full_like hamming_window hann_window
    kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta ones ones_like range scalar_tensor tril_indices triu_indices zero zero_ zeros
    zeros_like
"""
#: Random numbers, and their gradients.
_RANDOM = """
    alpha_dropout alpha_dropout_ bernoulli bernoulli_ binomial cauchy cauchy_ _cudnn_init_dropout_state
    _dirichlet_grad dropout dropout_ exponential exponential_ feature_alpha_dropout feature_alpha_dropout_
    feature_dropout feature_dropout_ _fill_mem_eff_dropout_mask_ _fused_dropout geometric geometric_ log_normal
    log_normal_ _masked_scale multinomial native_dropout normal normal_ normal_functional _philox_key_fold_in
    _philox_key_split _philox_normal _philox_normal_ _philox_uniform _philox_uniform_ poisson rand rand_like randint
    randint_like randn randn_like random random_ randperm rrelu rrelu_ rrelu_with_noise rrelu_with_noise_
    rrelu_with_noise_functional _sample_dirichlet _standard_gamma _standard_gamma_grad uniform uniform_
"""
#: Moving and arranging elements, gathers and scatters, comparing, sorting, counting.
_ARRANGING = """
    alias alias_copy allclose argmax argmin argsort as_strided_copy as_strided_scatter _assert_async _assert_scalar
    _assert_tensor_metadata bincount block_diag bucketize cat channel_shuffle channel_shuffle_ _chunk_cat clone
    col2im complex _conj_copy constant_pad_nd contiguous copy copy_ _copy_from _copy_from_and_resize count_nonzero
    cummax _cummax_helper cummin _cummin_helper detach detach_copy diag_embed diagonal_backward diagonal_copy
    diagonal_scatter embedding _embedding_bag _embedding_bag_backward _embedding_bag_dense_backward
    _embedding_bag_forward_only _embedding_bag_per_sample_weights_backward embedding_dense_backward embedding_renorm
    embedding_renorm_ equal expand_copy flip floor_divide _functional_assert_async _functional_assert_scalar
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size _fw_primal_copy gather
    _has_same_storage_numel hash_tensor histc histogram _histogramdd_bin_edges _histogramdd_from_bin_cts
    _histogramdd_from_bin_tensors im2col index index_add index_add_ index_copy index_copy_ index_fill index_put
    index_put_ _index_put_impl _index_put_impl_ index_reduce index_select index_select_backward _is_all_true
    _is_any_true is_nonzero is_pinned is_same_size is_set_to isin item kthvalue _lazy_clone lift lift_fresh
    lift_fresh_copy _local_scalar_dense _make_dual_copy masked_fill masked_scatter masked_scatter_
    masked_scatter_backward masked_select max max_unpool2d max_unpool3d median min mode nanmedian narrow_copy
    _neg_view_copy _nested_tensor_from_mask nonzero nonzero_static one_hot _pack_padded_sequence pad permute_copy
    _pin_memory pixel_shuffle pixel_unshuffle polar put record_stream reflection_pad1d reflection_pad1d_backward
    reflection_pad2d reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward repeat repeat_interleave
    replication_pad1d replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
    replication_pad3d_backward _reshape_alias_copy _reshape_copy resize resize_ resize_as resize_as_ _resize_output
    _resize_output_ roll rot90 scatter scatter_ scatter_add scatter_add_ scatter_reduce searchsorted select_backward
    select_copy select_scatter set set_ slice slice_backward slice_copy slice_scatter sort split split_copy
    split_with_sizes_copy squeeze_copy _stack stack sym_constrain_range sym_constrain_range_for_size sym_numel
    sym_size sym_stride t_copy take _to_copy topk transpose_copy tril triu unbind_copy unfold_backward unfold_copy
    _unique _unique2 unique_consecutive unique_dim unique_dim_consecutive _unsafe_index _unsafe_index_put
    _unsafe_masked_index _unsafe_masked_index_put_accumulate unsafe_split unsafe_split_with_sizes _unsafe_view
    unsqueeze_copy view_as_complex_copy view_as_real_copy view_copy
"""
#: Elementwise work without torch's tag: activation functions and their gradients, optimizers, quantization.
_ELEMENTWISE = """
    _add_relu _add_relu_ _amp_foreach_non_finite_check_and_unscale _amp_foreach_non_finite_check_and_unscale_
    _amp_update_scale _amp_update_scale_ dequantize elu_backward fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask _fake_quantize_learnable_per_channel_affine
    _fake_quantize_learnable_per_channel_affine_backward _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_tensor_affine_backward _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    _fused_adagrad _fused_adagrad_ _fused_adam _fused_adam_ _fused_adamw _fused_adamw_
    _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional _fused_sgd _fused_sgd_
    glu_backward_jvp glu_jvp hardshrink_backward hardsigmoid_backward hardswish hardswish_ hardswish_backward
    hardtanh_backward int_repr leaky_relu_backward linalg_cross _make_per_channel_quantized_tensor
    _make_per_tensor_quantized_tensor _prelu_kernel _prelu_kernel_backward q_per_channel_axis q_per_channel_scales
    q_per_channel_zero_points q_scale q_zero_point quantize_per_channel quantize_per_tensor
    quantize_per_tensor_dynamic rrelu_with_noise_backward softplus_backward softshrink_backward _thnn_fused_gru_cell
    _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl
    _transform_bias_rescale_qkv
"""
#: Reductions, norms, softmax, pooling, interpolation: work without products.
_REDUCING = """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_avg_pool3d_backward adaptive_max_pool2d
    adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward all amax amin _aminmax aminmax any
    avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward batch_norm_backward
    batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt batch_norm_gather_stats
    batch_norm_gather_stats_with_counts _batch_norm_no_update batch_norm_stats batch_norm_update_stats
    _batch_norm_with_update _batch_norm_with_update_functional binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits _ctc_loss _ctc_loss_backward cudnn_affine_grid_generator_backward
    cudnn_batch_norm cudnn_batch_norm_backward _cudnn_ctc_loss cudnn_grid_sampler cudnn_grid_sampler_backward
    cumprod cumsum cumsum_ fractional_max_pool2d fractional_max_pool2d_backward fractional_max_pool3d
    fractional_max_pool3d_backward _fused_rms_norm _fused_rms_norm_backward glu glu_backward grid_sampler_2d
    grid_sampler_2d_backward _grid_sampler_2d_cpu_fallback _grid_sampler_2d_cpu_fallback_backward grid_sampler_3d
    grid_sampler_3d_backward huber_loss huber_loss_backward linalg__powsum linalg_vector_norm log_sigmoid_backward
    log_sigmoid_forward _log_softmax log_softmax _log_softmax_backward_data _logcumsumexp logcumsumexp logsumexp
    _masked_softmax _masked_softmax_backward max_pool2d_backward max_pool2d_with_indices
    max_pool2d_with_indices_backward max_pool3d_with_indices max_pool3d_with_indices_backward mean miopen_batch_norm
    miopen_batch_norm_backward mkldnn_adaptive_avg_pool2d mkldnn_adaptive_avg_pool2d_backward mkldnn_max_pool2d
    mkldnn_max_pool2d_backward mkldnn_max_pool3d mkldnn_max_pool3d_backward mse_loss mse_loss_backward
    multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_backward multilabel_margin_loss_forward
    nansum native_batch_norm native_batch_norm_backward _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training native_dropout_backward native_group_norm native_group_norm_backward
    native_layer_norm native_layer_norm_backward native_norm nll_loss2d_backward nll_loss2d_forward
    nll_loss_backward nll_loss_forward norm prod quantized_batch_norm quantized_max_pool1d quantized_max_pool2d
    quantized_max_pool3d renorm _safe_softmax segment_reduce _segment_reduce_backward smooth_l1_loss
    smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward _softmax softmax _softmax_backward_data std
    std_mean sum trace upsample_bicubic2d _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward
    upsample_bicubic2d_backward upsample_bilinear2d _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward
    upsample_bilinear2d_backward _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward upsample_linear1d
    upsample_linear1d_backward upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d
    upsample_nearest2d_backward upsample_nearest3d upsample_nearest3d_backward _upsample_nearest_exact1d
    _upsample_nearest_exact1d_backward _upsample_nearest_exact2d _upsample_nearest_exact2d_backward
    _upsample_nearest_exact3d _upsample_nearest_exact3d_backward upsample_trilinear3d upsample_trilinear3d_backward
    _use_cudnn_ctc_loss _use_miopen_ctc_loss var var_mean _weight_norm_interface _weight_norm_interface_backward
"""
#: Queries of tensors, and arranging elements of sparse and nested ones.
_LAYOUTS = """
    ccol_indices _coalesce _coalesced_ col_indices crow_indices dense_dim dim _has_same_storage_numel indices _indices
    is_coalesced is_contiguous is_same_size is_strides_like_format _jagged_to_padded_dense_forward _nested_from_padded
    _nested_from_padded_and_nested_example _nested_from_padded_tensor _nested_select_backward _nested_sum_backward
    _nested_tensor_from_mask_left_aligned _nested_tensor_from_tensor_list _nested_tensor_size
    _nested_tensor_softmax_with_shape _nested_tensor_storage_offsets _nested_tensor_strides _nnz numel
    _padded_dense_to_jagged_forward row_indices size _sparse_broadcast_to _sparse_compressed_tensor_unsafe
    _sparse_compressed_tensor_with_dims _sparse_coo_tensor_unsafe _sparse_coo_tensor_with_dims
    _sparse_coo_tensor_with_dims_and_tensors sparse_dim _sparse_log_softmax _sparse_log_softmax_backward_data
    sparse_mask _sparse_mask_projection sparse_resize_ sparse_resize_and_clear_ _sparse_softmax
    _sparse_softmax_backward_data _sparse_sum _sparse_sum_backward storage_offset stride sym_is_contiguous
    sym_storage_offset _to_dense to_mkldnn _to_mkldnn to_padded_tensor _to_sparse _to_sparse_bsc _to_sparse_bsr
    _to_sparse_csc _to_sparse_csr to_sparse_csr _validate_sparse_compressed_tensor_args
    _validate_sparse_coo_tensor_args values _values
"""
#: Names of free operators in ``torch.ops.aten``. Products over a list of tensors are not: `_foreach_mm` has a formula.
ZERO_COST_NAMES: frozenset[str] = frozenset(
    f"{_MAKING} {_RANDOM} {_ARRANGING} {_ELEMENTWISE} {_REDUCING} {_LAYOUTS}".split()
)

#: Libraries without arithmetic on tensors (bookkeeping, moving tensors between processes), and torch's own elementwise
#: work, sums and random numbers (``prims``, ``rngprims``).
_FREE_NAMESPACES: frozenset[str] = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "fsdp", "inductor", "prim", "prims"}
    | {"profiler", "rngprims"}
)
#: Operators of those libraries that are not free: products, decompositions and Fourier transforms.
_NOT_FREE = frozenset({
    "inductor::_mm_plus_mm", "prims::fft_c2c", "prims::fft_c2r", "prims::fft_r2c", "prims::svd"
})  # fmt: skip
#: Elementwise work and sums on a list of tensors, as optimizers do it.
_ON_LISTS = "_foreach_"
#: Products on lists of tensors.
_PRODUCTS_ON_LISTS = frozenset({"_foreach_mm"})


@cache
def is_zero_cost(operator: Any) -> bool:
    """Whether an operator overload costs nothing by convention."""
    if operator.namespace in _FREE_NAMESPACES:
        return operator._overloadpacket._qualified_op_name not in _NOT_FREE
    if not is_of_torch(operator):
        return False
    name = operator._overloadpacket.__name__
    if operator.is_view or torch.Tag.pointwise in operator.tags:
        return True
    if name.startswith(_ON_LISTS):
        return name not in _PRODUCTS_ON_LISTS
    # In-place and out variants of an elementwise operator do not always carry its tag.
    functional = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    if functional is not None and any(is_zero_cost(getattr(functional, o)) for o in functional.overloads()):
        return True
    # Copied views, which torch makes of views in a trace.
    view = getattr(torch.ops.aten, name.removesuffix("_copy"), None) if name.endswith("_copy") else None
    if view is not None and any(getattr(view, o).is_view for o in view.overloads()):
        return True
    return name in ZERO_COST_NAMES
