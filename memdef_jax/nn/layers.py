"""Convolutions and pooling whose gradients stay fast on a CPU, also in compiled loops, and others.

XLA's CPU backend lays out the convolutions of a program's entry computation well, but not those in
the body of a `while`, where the input gradient of a convolution becomes up to ten times slower.
Attacks are such loops, so on a CPU the layers here write their input gradients as ordinary
stride-1 convolutions. `benchmarks/attack_loop.py` shows the effect. Other backends get the plain
convolution, whose gradients their libraries know best. The results are the same everywhere, but on
a CPU only reverse-mode differentiation passes (`jax.vjp`, `jax.grad`, `jax.jacrev`).

Kernels are [height, width, in, out] (HWIO); paddings and output paddings follow torch's meaning.
What a layer reads is cast to the dtype of its kernel, see `nn.precision`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Up to so many inputs an output pixel, patches and a matrix product are faster on a CPU.
_PATCH_LIMIT = 30
# Up to so many output pixels too: on 2x2 maps of 512 channels XLA's own is a hundred times slower.
_TINY_MAP = 9
# And on small maps with more outputs than that, from few enough inputs, by a tenth to a quarter.
_SMALL_MAP, _MANY_OUTPUTS, _SOME_INPUTS = 64, 64, 300


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )


def _correlate(
    x: jax.Array, kernel: jax.Array, stride: int, pads: list[tuple[int, int]]
) -> jax.Array:
    """A convolution in the way that is fast on a CPU for its size."""
    out = [(n + sum(p) - k) // stride + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape)]
    pixels, inputs = out[0] * out[1], kernel[..., 0].size
    small = stride == 1 and pixels <= _SMALL_MAP and inputs <= _SOME_INPUTS
    if (
        pixels <= _TINY_MAP
        or inputs <= _PATCH_LIMIT
        or (small and kernel.shape[3] >= _MANY_OUTPUTS)
    ):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])
        if stride > 1 and inputs <= _PATCH_LIMIT:
            x, kernel, stride = *_folded(x, kernel, stride, out), 1
        return _patches(x, kernel, stride)
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _transposed(
    g: jax.Array, kernel: jax.Array, stride: int, padding: int, size: tuple[int, int]
) -> jax.Array:
    """The adjoint of `_convolution` in x as one stride-1 convolution and a depth-to-space.

    Output pixel `stride * q + r` only meets the kernel taps `r + stride * m`: each phase r is a
    small convolution of g, and all phases together are one with stride**2 times the channels.
    """
    k, (c_in, c_out) = kernel.shape[:2], kernel.shape[2:]
    taps = [-(-n // stride) for n in k]
    # Only the blocks of stride x stride pixels that reach into the unpadded image are made.
    first = padding // stride
    grid = [-(-(n + padding) // stride) - first for n in size]
    kernel = jnp.pad(
        kernel, [(0, m * stride - n) for m, n in zip(taps, k)] + [(0, 0), (0, 0)]
    ).reshape(taps[0], stride, taps[1], stride, c_in, c_out)
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    kernel = kernel.reshape(*taps, c_out, stride * stride * c_in)
    pads = [(m - 1 - first, first + q - n) for m, q, n in zip(taps, grid, g.shape[1:3])]
    y = _correlate(g, kernel, 1, pads)
    y = y.reshape(-1, *grid, stride, stride, c_in).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(-1, grid[0] * stride, grid[1] * stride, c_in)
    skip = padding - first * stride
    return y[:, skip : skip + size[0], skip : skip + size[1]]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, g: jax.Array
) -> jax.Array:
    return jax.vjp(lambda k: _convolution(x, k, stride, padding), kernel)[1](g)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _correlate(x, kernel, stride, [(padding, padding)] * 2)


def _cpu_convolution_fwd(x, kernel, stride, padding):
    return _cpu_convolution(x, kernel, stride, padding), (x, kernel)


def _cpu_convolution_bwd(stride, padding, residuals, g):
    x, kernel = residuals
    dx = _transposed(g, kernel, stride, padding, x.shape[1:3])
    return dx, _kernel_gradient(x, kernel, stride, padding, g)


_cpu_convolution.defvjp(_cpu_convolution_fwd, _cpu_convolution_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _cpu_transposed(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, size: tuple[int, int]
) -> jax.Array:
    return _transposed(x, kernel, stride, padding, size)


def _cpu_transposed_fwd(x, kernel, stride, padding, size):
    return _transposed(x, kernel, stride, padding, size), (x, kernel)


def _cpu_transposed_bwd(stride, padding, size, residuals, g):
    # The adjoint of the adjoint is the convolution, whose kernel gradient swaps input and output.
    x, kernel = residuals
    dx = _correlate(g, kernel, stride, [(padding, padding)] * 2)
    return dx, _kernel_gradient(g, kernel, stride, padding, x)


_cpu_transposed.defvjp(_cpu_transposed_fwd, _cpu_transposed_bwd)


def _shifts(x: jax.Array, window: tuple[int, int], stride: int) -> list[jax.Array]:
    """For each pixel of a window, that pixel of every window, [B, rows, columns, C]."""
    rows, cols = ((n - k) // stride * stride + 1 for n, k in zip(x.shape[1:3], window))
    return [
        x[:, i : i + rows : stride, j : j + cols : stride]
        for i in range(window[0])
        for j in range(window[1])
    ]


def _patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Unpadded convolution as gathered patches times a matrix.

    The barriers keep XLA from fusing the gathers with what is around them, which would compute
    that once for each patch and take long to compile.
    """
    x = lax.optimization_barrier(x)
    columns = _shifts(x, (kernel.shape[0], kernel.shape[1]), stride)
    y = jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, kernel.shape[3])
    return lax.optimization_barrier(y)


def _folded(
    x: jax.Array, kernel: jax.Array, stride: int, out: list[int]
) -> tuple[jax.Array, jax.Array]:
    """An unpadded strided convolution as one of stride 1 on blocks of stride x stride pixels.

    It gathers a quarter as many patches at stride 2, and none with gaps.
    """
    (h, w), (c_in, c_out) = kernel.shape[:2], kernel.shape[2:]
    taps = [-(-n // stride) for n in (h, w)]
    blocks = [n + m - 1 for n, m in zip(out, taps)]
    # Rows that no window reaches are dropped, and what the longer kernel reaches beyond is zero.
    ends = [n * stride - size for n, size in zip(blocks, x.shape[1:3])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((0, n, 0) for n in ends), (0, 0, 0)])
    x = x.reshape(-1, blocks[0], stride, blocks[1], stride, c_in).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, *blocks, stride * stride * c_in)
    spare = [(0, m * stride - n) for m, n in zip(taps, (h, w))]
    kernel = jnp.pad(kernel, [*spare, (0, 0), (0, 0)])
    kernel = kernel.reshape(taps[0], stride, taps[1], stride, c_in, c_out)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*taps, stride * stride * c_in, c_out)
    return x, kernel


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Two-dimensional cross-correlation, as `torch.nn.functional.conv2d`.

    Args:
      x: images or features [B, H, W, C].
      kernel: weights [h, w, C, D].
      stride: step in both axes.
      padding: zeros added on each side of both axes.

    Returns:
      [B, (H + 2 padding - h) // stride + 1, likewise for W, D].
    """
    if jax.default_backend() != "cpu":
        return _convolution(x, kernel, stride, padding)
    if kernel[..., 0].size <= _PATCH_LIMIT:
        return _correlate(x, kernel, stride, [(padding, padding)] * 2)
    if kernel.shape[:2] == (1, 1) and stride > 1 and padding == 0:
        return _cpu_convolution(x[:, ::stride, ::stride], kernel, 1, 0)
    return _cpu_convolution(x, kernel, stride, padding)


def transposed_convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 2, padding: int = 1, output_padding: int = 0
) -> jax.Array:
    """Transposed convolution, as `torch.nn.functional.conv_transpose2d`.

    Args:
      x: features [B, H, W, D].
      kernel: weights [h, w, C, D], the torch weight [D, C, h, w] moved to (2, 3, 1, 0): those of
        the convolution from C to D channels whose adjoint this is.
      stride: step of that convolution.
      padding: padding of that convolution.
      output_padding: rows and columns added to the output at the end.

    Returns:
      [B, (H - 1) stride - 2 padding + h + output_padding, likewise for W, C].
    """
    height, width = (
        (n - 1) * stride - 2 * padding + k + output_padding
        for n, k in zip(x.shape[1:3], kernel.shape[:2])
    )
    if jax.default_backend() == "cpu":
        return _cpu_transposed(x, kernel, stride, padding, (height, width))
    pads = [(k - 1 - padding, k - 1 - padding + output_padding) for k in kernel.shape[:2]]
    flipped = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    return lax.conv_general_dilated(
        x, flipped, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT
    )


def max_pool(x: jax.Array, size: int = 2, stride: int | None = None, padding: int = 0) -> jax.Array:
    """Max-pooling, as `torch.nn.functional.max_pool2d`.

    As maxima of reshaped or sliced arrays, because the gradient of XLA's windowed reduction is
    slow. Where entries of a window tie, the gradient is shared between them.

    Args:
      x: features [B, H, W, C].
      size: height and width of a window.
      stride: step between windows; `size` by default.
      padding: on each side, never the maximum.

    Returns:
      [B, (H + 2 padding - size) // stride + 1, likewise for W, C].
    """
    stride = stride or size
    if stride != size or padding:
        lowest = jnp.array(-jnp.inf, x.dtype)
        pads = [(0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0)]
        return functools.reduce(
            jnp.maximum, _shifts(lax.pad(x, lowest, pads), (size, size), stride)
        )
    h, w = x.shape[1] // size, x.shape[2] // size
    x = x[:, : h * size, : w * size]
    return x.reshape(x.shape[0], h, size, w, size, x.shape[3]).max(axis=(2, 4))


class Conv(nn.Module):
    """Convolution with bias, see `convolve`.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      stride: step in both axes.
      padding: zeros on each side.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel; the default is torch's, U(+-1/sqrt(fan_in)).
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = TORCH_UNIFORM

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(x.astype(kernel.dtype), kernel, self.stride, self.padding)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return y


class ConvTranspose(nn.Module):
    """Transposed convolution with bias, see `transposed_convolve`.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      stride: upsampling factor.
      padding: padding of the convolution whose adjoint this is.
      output_padding: rows and columns added at the end of the output.
      kernel_init: initialiser of the kernel; the default is torch's, U(+-1/sqrt(fan_in)), which
        counts the fan-in over the output channels.
    """

    features: int
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1
    output_padding: int = 0
    kernel_init: nn.initializers.Initializer = TORCH_UNIFORM

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = x.astype(kernel.dtype)
        y = transposed_convolve(x, kernel, self.stride, self.padding, self.output_padding)
        return y + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)


def _in_kernels_dtype(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    return x.astype(kernel.dtype), kernel, bias


class Dense(nn.Dense):
    """Flax's dense layer, computed in the dtype of its kernel; what it gives is float32."""

    promote_dtype: Any = _in_kernels_dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return super().__call__(inputs).astype(jnp.float32)


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm, computed in float32 with such statistics; it gives its input's dtype."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return super().__call__(x, *args, **kwargs).astype(x.dtype)


def batch_norm(
    train: bool,
    axis_name: str | None,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> BatchNorm:
    """BatchNorm with torch's defaults; statistics are averaged over `axis_name` where given."""
    return BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name if train else None,
        scale_init=scale_init,
    )
