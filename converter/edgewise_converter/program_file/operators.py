"""Operators that a program may call: torch's own that compute values from values.

The list leaves out those that read or write files (`from_file`, `save`), that print, that seed, that hand out memory
which holds whatever stood there before (`empty`, `resize_`, `set_`), that trust pivots or packed parameters from the
graph, that have loops without a bound, and those of training. In-place forms are allowed along with the others.
"""

from __future__ import annotations

import re
from typing import Any, Final

from edgewise_converter.program_file.harm import HarmError

_SYMBOLIC: Final = re.compile(
    r"_operator\.(eq|ne|le|lt|ge|gt|neg|pos|abs|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|not_|lshift|rshift)|"
    r"math\.(trunc|ceil|floor|sqrt)|torch\._?sym_(not|int|float|ite|max|min|sqrt)|"
    r"torch\.amp\.autocast_mode\._(enter|exit)_autocast"
)
_OVERLOAD: Final = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.(\w+)\.([A-Za-z]\w*)", re.ASCII)
_HIGHER_ORDER: Final = re.compile(
    r"torch\.ops\.higher_order\.(cond|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
_DECOMPOSED: Final = re.compile(r"(de)?quantize_per_(tensor|channel|token|channel_group)|choose_qparams\w*")


def is_symbolic(target: str) -> bool:
    """Whether it computes with sizes, not with tensors."""
    return _SYMBOLIC.fullmatch(target) is not None


def check_operator(torch: Any, target: str) -> None:
    """Hold what a node calls to the list.

    Raises:
        HarmError: it is none of these operators.
    """
    if is_symbolic(target) or _HIGHER_ORDER.fullmatch(target):
        return
    found = _OVERLOAD.fullmatch(target)
    if not found or not _is_listed(found[1], found[2]):
        raise HarmError(f"a call of {target[:80]!r}")
    # What is no overload of an operator is an attribute of Python's, such as `overloads`.
    packet = getattr(getattr(torch.ops, found[1]), found[2], None)
    if packet is not None and not isinstance(getattr(packet, found[3], None), torch._ops.OpOverload):
        raise HarmError(f"a call of {target[:80]!r}")


def _is_listed(library: str, name: str) -> bool:
    if library == "quantized_decomposed":
        return _DECOMPOSED.fullmatch(name) is not None
    return name in _ATEN or name.rstrip("_") in _ATEN or name.startswith(("special_", "fft_"))


_NAMES: Final = """
abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint affine_grid_generator
alias all alpha_dropout amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh
argmax argmin argsort argwhere as_strided as_strided_scatter asin asinh atan atan2 atanh atleast_1d atleast_2d
atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bernoulli bilinear
binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize
cartesian_prod cat cdist ceil celu chain_matmul chalf channel_shuffle cholesky cholesky_inverse chunk clamp
clamp_max clamp_min clip clone col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd
contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy
copysign corrcoef cos cosh cosine_similarity count_nonzero cov cross cross_entropy_loss cummax cummin cumprod cumsum
cumulative_trapezoid deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter diff digamma dim dist div
divide dot dropout dsplit dstack einsum elu embedding embedding_bag eq erf erfc erfinv exp exp2 expand expand_as
expm1 eye fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask
fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask feature_alpha_dropout feature_dropout fill
fill_diagonal fix flatten flip fliplr flipud float_power floor floor_divide floordiv fmax fmin fmod frac frexp
frobenius_norm full full_like gather gcd ge gelu ger glu greater greater_equal grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh
heaviside histc hsplit hstack huber_loss hypot i0 igamma igammac im2col imag index index_add index_copy index_fill
index_put index_reduce index_select inner instance_norm inverse is_nonzero isclose isfinite isin isinf isnan
isneginf isposinf isreal istft item kaiser_window kl_div kron kthvalue l1_loss layer_norm lcm ldexp le leaky_relu
lerp less less_equal lgamma lift_fresh lift_fresh_copy linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross
linalg_det linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex
linalg_lstsq linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power linalg_matrix_rank
linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_svd
linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot linalg_vector_norm linear linspace
log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logdet
logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT masked_fill
masked_scatter masked_select matmul matrix_H matrix_exp matrix_power max max_pool1d max_pool1d_with_indices
max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median
meshgrid min minimum mish mm mode moveaxis movedim mse_loss msort mul multinomial multiply mv mvlgamma nan_to_num
nanmean nanmedian nanquantile nansum narrow native_batch_norm native_channel_shuffle native_dropout
native_group_norm native_layer_norm ne neg negative new_full new_ones new_zeros nextafter nll_loss nll_loss2d
nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero nonzero_static norm normal not_equal nuclear_norm numel
one_hot ones ones_like outer pad pad_sequence pairwise_distance pdist permute pinverse pixel_shuffle pixel_unshuffle
poisson_nll_loss polygamma positive pow prelu prod put quantile rad2deg rand rand_like randint randint_like randn
randn_like randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder
repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj
resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rrelu rrelu_with_noise
rsplit rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select
select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh size slice slice_scatter slogdet smooth_l1_loss
softmax softplus softshrink sort split split_with_sizes sqrt square squeeze stack std std_mean stft sub subtract sum
swapaxes swapdims sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size
sym_storage_offset sym_stride t take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace
transpose trapezoid trapz tril tril_indices triu triu_indices true_divide trunc type_as unbind unflatten unfold
uniform unique_consecutive unique_dim unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes
unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex view_as_real vsplit
vstack where xlogy zero zeros zeros_like __and__ __iand__ __ior__ __ixor__ __lshift__ __or__ __rshift__ __xor__
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata _cdist_forward _conj
_convolution _embedding_bag _fft_c2c _fft_c2r _fft_r2c _functional_assert_scalar _functional_sym_constrain_range
_functional_sym_constrain_range_for_size _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd
_local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _pack_padded_sequence _pad_packed_sequence _pdist_forward _prelu_kernel
_safe_softmax _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu _shape_as_tensor
_softmax _to_copy _trilinear _unique _unique2 _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d _weight_norm _weight_norm_interface
"""
_ATEN: Final = frozenset(_NAMES.split())
