"""Layers written out in NumPy, float64, from the published definitions: the oracles of this folder.

Images are [B, H, W, C], convolution kernels [h, w, in, out], and the weights of a transposed
convolution have torch's layout [in, out, h, w].
"""

import types

import numpy as np
import pytest


def conv2d(x, kernel, stride=1, padding=0):
    """y[i, j, d] = sum over u, v, c of x[i s - p + u, j s - p + v, c] k[u, v, c, d]."""
    h, w, _, features = kernel.shape
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows, cols = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // stride + 1
    y = np.zeros((x.shape[0], rows, cols, features))
    for i in range(rows):
        for j in range(cols):
            window = x[:, i * stride : i * stride + h, j * stride : j * stride + w]
            y[:, i, j] = np.tensordot(window, np.asarray(kernel, np.float64), 3)
    return y


def conv2d_gradients(x, kernel, stride, padding, g):
    """The gradients of <g, conv2d(x, kernel)> in x and in the kernel."""
    h, w = kernel.shape[:2]
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    dx, dk = np.zeros_like(x), np.zeros(kernel.shape)
    for i in range(g.shape[1]):
        for j in range(g.shape[2]):
            at = np.s_[:, i * stride : i * stride + h, j * stride : j * stride + w]
            dx[at] += np.einsum("bd,uvcd->buvc", g[:, i, j], kernel)
            dk += np.einsum("buvc,bd->uvcd", x[at], g[:, i, j])
    return dx[:, padding : dx.shape[1] - padding, padding : dx.shape[2] - padding], dk


def conv_transpose2d(x, weight, stride=1, padding=0, output_padding=0):
    """Every input pixel stamps its kernel on the output, `stride` apart; then p is cropped."""
    (batch, height, width, _), (_, features, h, w) = x.shape, weight.shape
    y = np.zeros(
        (
            batch,
            (height - 1) * stride + h + output_padding,
            (width - 1) * stride + w + output_padding,
            features,
        )
    )
    for i in range(height):
        for j in range(width):
            stamp = np.einsum("bd,dcuv->buvc", np.asarray(x[:, i, j], np.float64), weight)
            y[:, i * stride : i * stride + h, j * stride : j * stride + w] += stamp
    return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]


def conv_transpose2d_gradients(x, weight, stride, padding, g):
    """The gradients of <g, conv_transpose2d(x, weight)> in x and in the weight."""
    h, w = weight.shape[2:]
    g = np.pad(np.asarray(g, np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    dx, dw = np.zeros(x.shape), np.zeros(weight.shape)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = g[:, i * stride : i * stride + h, j * stride : j * stride + w]
            dx[:, i, j] = np.einsum("buvc,dcuv->bd", window, weight)
            dw += np.einsum("bd,buvc->dcuv", x[:, i, j], window)
    return dx, dw


def max_pool2d(x, size, stride=None, padding=0):
    """The maximum of each window; padding never wins."""
    stride = stride or size
    x = np.pad(
        np.asarray(x, np.float64),
        [(0, 0), (padding, padding), (padding, padding), (0, 0)],
        constant_values=-np.inf,
    )
    rows, cols = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    y = np.zeros((x.shape[0], rows, cols, x.shape[3]))
    for i in range(rows):
        for j in range(cols):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = window.max(axis=(1, 2))
    return y


def batch_norm(x, params, stats):
    """BatchNorm with running statistics and torch's epsilon."""
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


@pytest.fixture(scope="session")
def reference():
    return types.SimpleNamespace(
        conv2d=conv2d,
        conv2d_gradients=conv2d_gradients,
        conv_transpose2d=conv_transpose2d,
        conv_transpose2d_gradients=conv_transpose2d_gradients,
        max_pool2d=max_pool2d,
        batch_norm=batch_norm,
    )
