"""Operators that do no floating-point work, grouped by reason.

Names without a namespace are those of ATen.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FREE_OPERATORS"]

# An in-place form (`aten::squeeze_`) shares the row of its operator, see `registry.lookup`.
FREE_OPERATORS: Mapping[str, str] = {
    "a view": """
        view _unsafe_view view_as view_as_real view_as_complex reshape reshape_as _reshape_alias unflatten flatten ravel
        expand expand_as broadcast_to broadcast_tensors squeeze unsqueeze permute transpose t numpy_T mT mH matrix_H
        adjoint movedim moveaxis swapaxes swapdims select slice narrow unbind split split_with_sizes unsafe_split
        unsafe_split_with_sizes chunk unsafe_chunk tensor_split hsplit vsplit dsplit diagonal linalg_diagonal as_strided
        unfold detach alias _add_batch_dim _remove_batch_dim real imag conj _conj _neg_view resolve_conj resolve_neg
        atleast_1d atleast_2d atleast_3d meshgrid values indices _values _indices crow_indices col_indices ccol_indices
        row_indices _nested_view_from_buffer _nested_view_from_jagged _nested_get_values lift lift_fresh data _fw_primal
        _make_dual _unpack_dual _mkldnn_transpose _sparse_broadcast_to prims::broadcast_in_dim prims::view_of
        prims::collapse_view prims::split_dim
    """,
    "a copy": """
        clone copy contiguous lift_fresh_copy _lazy_clone _copy_from _copy_from_and_resize _reshape_copy view_copy
        view_as_real_copy view_as_complex_copy _reshape_alias_copy expand_copy squeeze_copy unsqueeze_copy permute_copy
        transpose_copy t_copy select_copy slice_copy unbind_copy split_copy split_with_sizes_copy diagonal_copy
        as_strided_copy unfold_copy detach_copy alias_copy _conj_copy _neg_view_copy values_copy indices_copy
        _values_copy _indices_copy crow_indices_copy col_indices_copy ccol_indices_copy row_indices_copy narrow_copy cat
        concat concatenate stack _stack hstack vstack dstack column_stack row_stack block_diag cartesian_prod
        combinations tile repeat repeat_interleave roll rot90 flip fliplr flipud pin_memory _pin_memory diag diag_embed
        diagflat tril triu fft_fftshift fft_ifftshift pixel_shuffle pixel_unshuffle channel_shuffle
        native_channel_shuffle im2col complex _foreach_copy _foreach_clone _chunk_cat flatten_dense_tensors
        unflatten_dense_tensors pad_sequence _pack_padded_sequence _pad_packed_sequence _pack_padded_sequence_backward
        _pack_sequence _nested_tensor_from_tensor_list _nested_tensor_from_mask _nested_from_padded
        nested_to_padded_tensor to_padded_tensor _nested_from_padded_tensor _nested_view_from_buffer_copy
        _nested_view_from_jagged_copy _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward _make_dual_copy
        _fw_primal_copy _nested_get_values_copy copy_sparse_to_sparse _sparse_broadcast_to_copy
        fsdp::all_gather_copy_in fsdp::split_with_sizes_copy fsdp::chunk_cat fsdp::copy_
    """,
    "a cast or a move between devices and layouts": """
        to _to_copy type_as _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
        chalf cpu cuda _to_cpu _autocast_to_full_precision _autocast_to_reduced_precision to_dense _to_dense to_sparse
        _to_sparse to_sparse_csr _to_sparse_csr to_sparse_csc _to_sparse_csc to_sparse_bsr _to_sparse_bsr to_sparse_bsc
        _to_sparse_bsc to_mkldnn to_dense_backward to_mkldnn_backward _mkldnn_reshape mkldnn_reorder_conv2d_weight
        mkldnn_reorder_conv3d_weight _saturate_weight_to_fp16 int_repr _make_per_tensor_quantized_tensor
        _make_per_channel_quantized_tensor _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu
        _dyn_quant_pack_4bit_weight fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix _cudnn_rnn_flatten_weight
        coalesce _coalesce _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo lu_unpack
        mkldnn::_reorder_convolution_weight mkldnn::_reorder_convolution_transpose_weight mkldnn::_reorder_linear_weight
        mkldnn::_reorder_mkldnn_rnn_layer_weight mkl::_mkl_reorder_linear_weight
        prims::convert_element_type prims::device_put
    """,
    "padding": """
        pad constant_pad_nd _pad_enum _pad_circular reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d
    """,
    "an index or a look-up": """
        index _unsafe_index _unsafe_masked_index index_select index_copy index_fill gather scatter take take_along_dim
        masked_select masked_scatter masked_fill embedding select_scatter slice_scatter diagonal_scatter
        as_strided_scatter select_backward slice_backward diagonal_backward masked_select_backward
        masked_scatter_backward trace_backward value_selecting_reduction_backward cummaxmin_backward where one_hot
        fill_diagonal slice_inverse sparse_mask _sparse_mask_projection max_unpool2d max_unpool3d nonzero nonzero_numpy
        nonzero_static argwhere embedding_renorm
    """,
    "a comparison or a logical operator": """
        eq ne lt le gt ge equal not_equal less less_equal greater greater_equal isclose allclose isnan isinf isfinite
        isneginf isposinf isreal isin all any logical_and logical_or logical_xor logical_not bitwise_and bitwise_or
        bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __iand__ __ior__ __ixor__
        __lshift__ __rshift__ __ilshift__ __irshift__ signbit count_nonzero _is_all_true _is_any_true gcd lcm __not__
        __is__ __isnot__ __contains__ is_same_size
    """,
    "sorting or searching": """
        sort argsort msort topk kthvalue mode unique_consecutive unique_dim unique_dim_consecutive _unique _unique2
        searchsorted bucketize bincount histc histogram histogramdd _histogramdd_bin_edges _histogramdd_from_bin_cts
        _histogramdd_from_bin_tensors hash_tensor torchvision::nms
    """,
    "a new tensor": """
        empty empty_like empty_strided empty_permuted empty_quantized new_empty new_empty_strided zeros zeros_like
        new_zeros ones ones_like new_ones full full_like new_full fill zero _foreach_zero scalar_tensor tensor as_tensor
        arange range linspace logspace eye tril_indices triu_indices hann_window hamming_window blackman_window
        bartlett_window kaiser_window fft_fftfreq fft_rfftfreq _efficientzerotensor _new_zeros_with_same_feature_meta
        from_file resize resize_as set _resize_output _no_grad_fill_ _no_grad_zero_ sparse_coo_tensor sparse_csr_tensor
        sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor sparse_compressed_tensor _sparse_coo_tensor_unsafe
        _sparse_csr_tensor_unsafe _sparse_csc_tensor_unsafe _sparse_bsr_tensor_unsafe _sparse_bsc_tensor_unsafe
        _sparse_compressed_tensor_unsafe _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors
        _sparse_compressed_tensor_with_dims _coalesced _empty_affine_quantized _empty_per_channel_affine_quantized
    """,
    "random numbers": """
        rand rand_like randn randn_like randint randint_like randperm random normal normal_functional uniform bernoulli
        exponential geometric cauchy log_normal multinomial poisson binomial _standard_gamma _sample_dirichlet
        _no_grad_normal_ _no_grad_uniform_ _cudnn_init_dropout_state _philox_normal _philox_uniform _philox_key_split
        _philox_key_fold_in _fill_mem_eff_dropout_mask_
    """,
    "a question about a tensor": """
        size sym_size stride sym_stride numel sym_numel storage_offset sym_storage_offset dim device element_size
        is_contiguous sym_is_contiguous is_floating_point is_complex is_signed is_conj is_neg is_inference is_leaf
        is_pinned is_coalesced is_nonzero is_set_to is_non_overlapping_and_dense is_strides_like_format is_distributed
        is_vulkan_available _is_zerotensor _has_compatible_shallow_copy_type _has_same_storage_numel result_type
        promote_types can_cast get_device _shape_as_tensor item _local_scalar_dense sparse_dim dense_dim _dimI _dimV
        _nnz _version output_nr requires_grad requires_grad_ retain_grad retains_grad set_data qscheme q_scale
        q_zero_point q_per_channel_scales q_per_channel_zero_points q_per_channel_axis broadcast_shapes _infer_size
        _nested_tensor_size _nested_tensor_strides _nested_tensor_storage_offsets _nested_get_offsets
        _nested_get_lengths _nested_get_ragged_idx _nested_get_min_seqlen _nested_get_max_seqlen
        _nested_get_jagged_dummy _nested_compute_contiguous_strides_offsets _fused_sdp_choice cudnn_is_acceptable
        _use_cudnn_ctc_loss _use_cudnn_rnn_flatten_weight _debug_has_internal_overlap _nnpack_available
        _get_tracing_state _get_cpu_capability is_grad_enabled is_autocast_enabled is_autocast_cpu_enabled
        get_autocast_dtype is_scripting has_torch_function prim::device
    """,
    "numbers, lists and strings of Python": """
        Int IntImplicit Float FloatImplicit Complex ComplexImplicit ScalarImplicit Bool Size Generator Delete
        __getitem__ _set_item __derive_index __range_length __round_to_zero_floordiv floordiv mathremainder divmod len
        append extend insert pop remove clear reverse list dict items keys update get setdefault popitem hash format str
        join ord chr hex oct bin degrees radians _list_to_tensor _tensor_to_list _unwrap_optional _size_if_not_equal
        warn manual_seed seed initial_seed set_grad_enabled _print
    """,
    "a check": """
        _assert_async _functional_assert_async _assert_scalar _functional_assert_scalar _assert_tensor_metadata
        sym_constrain_range sym_constrain_range_for_size _functional_sym_constrain_range
        _functional_sym_constrain_range_for_size _make_dep_token _validate_compressed_sparse_indices
        _validate_sparse_coo_tensor_args _validate_sparse_csr_tensor_args _validate_sparse_csc_tensor_args
        _validate_sparse_bsr_tensor_args _validate_sparse_bsc_tensor_args _validate_sparse_compressed_tensor_args
        _linalg_check_errors _test_check_tensor record_stream _amp_update_scale
    """,
    "communication": """
        c10d::_allgather_base_ c10d::_reduce_scatter_base_ c10d::allgather_ c10d::allgather_coalesced_
        c10d::allgather_into_tensor_coalesced_ c10d::allreduce_ c10d::allreduce_coalesced_ c10d::alltoall_
        c10d::alltoall_base_ c10d::barrier c10d::broadcast_ c10d::check_for_nan c10d::gather_ c10d::monitored_barrier_
        c10d::recv_ c10d::recv_any_source_ c10d::reduce_ c10d::reduce_scatter_ c10d::reduce_scatter_tensor_coalesced_
        c10d::scatter_ c10d::send _c10d_functional::all_gather_into_tensor
        _c10d_functional::all_gather_into_tensor_coalesced _c10d_functional::all_gather_into_tensor_out
        _c10d_functional::all_reduce _c10d_functional::all_reduce_coalesced _c10d_functional::all_to_all_single
        _c10d_functional::batch_p2p_ops _c10d_functional::broadcast _c10d_functional::irecv _c10d_functional::isend
        _c10d_functional::reduce_scatter_tensor _c10d_functional::reduce_scatter_tensor_coalesced
        _c10d_functional::reduce_scatter_tensor_out _c10d_functional::wait_tensor
        _c10d_functional::_wrap_tensor_autograd _c10d_functional_autograd::all_gather_into_tensor
        _c10d_functional_autograd::all_to_all_single _c10d_functional_autograd::reduce_scatter_tensor
        _dtensor::shard_dim_alltoall
        c10d_functional::all_gather_into_tensor c10d_functional::all_gather_into_tensor_coalesced
        c10d_functional::all_reduce c10d_functional::all_reduce_coalesced c10d_functional::all_to_all_single
        c10d_functional::broadcast c10d_functional::reduce_scatter_tensor
        c10d_functional::reduce_scatter_tensor_coalesced c10d_functional::wait_tensor
        symm_mem::one_shot_all_reduce symm_mem::one_shot_all_reduce_copy symm_mem::two_shot_all_reduce_
        symm_mem::multimem_all_reduce_ symm_mem::multimem_one_shot_all_reduce symm_mem::reduce_scatter_out
        symm_mem::_low_contention_all_gather symm_mem::_low_contention_reduce_scatter
        prim::PythonOp.Redistribute prim::PythonOp.NestedRedistribute prim::PythonOp._FromTorchTensor
        prim::PythonOp._ToTorchTensor
    """,
    "a mark for the profiler": """
        profiler::_record_function_enter profiler::_record_function_enter_new profiler::_record_function_exit
    """,
}
