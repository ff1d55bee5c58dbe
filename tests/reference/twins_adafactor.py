"""Adafactor four times, as four reference files write it; see `twins`.

An option that a file does not have (momentum in torch's, a relative step in big_vision's) means there
what it means in the paper: momentum averages the scaled update, the relative step is min(1e-2, t^-1/2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def base_rate(lr: float, t: int, h: dict[str, Any]) -> float:
    """arXiv:1804.04235, algorithm 6 and section 9: the learning rate before the parameter's scale."""
    if not h["relative_step"]:
        return lr
    return min(1e-6 * t if h["warmup_init"] else 1e-2, 1 / np.sqrt(t))


def two_largest(shape: tuple[int, ...], at_least: int) -> tuple[int, int] | None:
    """(d1, d0): the second largest and the largest dimension, or None if either is too small."""
    if len(shape) < 2:
        return None
    d1, d0 = (int(d) for d in np.argsort(shape, kind="stable")[-2:])
    return (d1, d0) if shape[d1] >= at_least else None


def t5x(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """google-research/t5x, t5x/adafactor.py, apply_param_gradient."""
    eps1, eps2 = h["eps"]
    path, m, v, v_row, v_col = [], 0.0 * p, 0.0, 0.0, 0.0
    dims = two_largest(p.shape, 128)
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        decay_rate = 1 - t ** h["beta2_decay"]
        update_scale = base_rate(lr, t, h)
        if h["scale_parameter"]:
            update_scale *= max(rms(p), eps2)
        grad_sqr = g * g + eps1
        if dims:
            d1, d0 = dims
            v_row = decay_rate * v_row + (1 - decay_rate) * np.mean(grad_sqr, axis=d0)
            v_col = decay_rate * v_col + (1 - decay_rate) * np.mean(grad_sqr, axis=d1)
            reduced_d1 = d1 - 1 if d1 > d0 else d1
            row_factor = (v_row / np.mean(v_row, axis=reduced_d1, keepdims=True)) ** -0.5
            y = g * np.expand_dims(row_factor, d0) * np.expand_dims(v_col**-0.5, d1)
        else:
            v = decay_rate * v + (1 - decay_rate) * grad_sqr
            y = g * v**-0.5
        y = y / max(1.0, rms(y) / h["d"])
        subtrahend = update_scale * y
        if h["beta1"]:
            subtrahend = m = h["beta1"] * m + (1 - h["beta1"]) * subtrahend
        p = (1 - h["weight_decay"]) * p - subtrahend
        path.append(p)
    return path


def hf(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """transformers/optimization.py, Adafactor.step."""
    eps1, eps2 = h["eps"]
    path, exp_avg, exp_avg_sq, row, col = [], 0.0 * p, 0.0, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        lr = base_rate(lr, t, h) * (max(eps2, rms(p)) if h["scale_parameter"] else 1.0)
        beta2t = 1 - t ** h["beta2_decay"]
        update = g**2 + eps1
        if p.ndim >= 2:
            row = beta2t * row + (1 - beta2t) * update.mean(-1)
            col = beta2t * col + (1 - beta2t) * update.mean(-2)
            r_factor = (row / row.mean(-1, keepdims=True)) ** -0.5
            update = r_factor[..., :, None] * (col**-0.5)[..., None, :] * g
        else:
            exp_avg_sq = beta2t * exp_avg_sq + (1 - beta2t) * update
            update = exp_avg_sq**-0.5 * g
        update = update / max(1.0, rms(update) / h["d"]) * lr
        if h["beta1"]:
            update = exp_avg = h["beta1"] * exp_avg + (1 - h["beta1"]) * update
        p = p - h["weight_decay"] * lr * p
        p = p - update
        path.append(p)
    return path


def torch_adafactor(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """torch/optim/_adafactor.py, _single_tensor_adafactor."""
    eps1, eps2 = h["eps"]
    path, m, variance, row_var, col_var = [], 0.0 * p, 0.0, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        lr = base_rate(lr, t, h)
        one_minus_beta2_t = t ** h["beta2_decay"]
        rho_t = min(lr, 1 / t**0.5)
        alpha = (max(eps2, rms(p)) if h["scale_parameter"] else 1.0) * rho_t
        p = p * (1 - lr * h["weight_decay"])
        if p.ndim > 1:
            row_var = row_var + one_minus_beta2_t * ((g**2).mean(-1, keepdims=True) - row_var)
            col_var = col_var + one_minus_beta2_t * ((g**2).mean(-2, keepdims=True) - col_var)
            estimate = row_var @ col_var / np.maximum(row_var.mean(-2, keepdims=True), eps1)
        else:
            estimate = variance = variance + one_minus_beta2_t * (g**2 - variance)
        update = g / np.sqrt(np.maximum(estimate, eps1 * eps1))
        step = alpha / max(1.0, rms(update) / h["d"]) * update
        if h["beta1"]:
            step = m = h["beta1"] * m + (1 - h["beta1"]) * step
        p = p - step
        path.append(p)
    return path


def big_vision(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """big_vision/optax.py, scale_by_adafactor, with the decay of timm/optim/adafactor_bv.py (times lr)."""
    eps1, eps2 = h["eps"]
    path, m, v, v_row, v_col = [], 0.0 * p, 0.0, 0.0, 0.0
    dims = two_largest(p.shape, 32)
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        lr = base_rate(lr, t, h)
        beta2_t = min(0.999, 1 - t ** h["beta2_decay"])
        grad_sqr = g**2 + eps1
        if dims:
            dc, dr = dims
            v_row = beta2_t * v_row + (1 - beta2_t) * grad_sqr.mean(dr, keepdims=True)
            v_col = beta2_t * v_col + (1 - beta2_t) * grad_sqr.mean(dc, keepdims=True)
            update = g * (v_row / v_row.mean(dc, keepdims=True)) ** -0.5 * v_col**-0.5
        else:
            v = beta2_t * v + (1 - beta2_t) * grad_sqr
            update = g * v**-0.5
        update = update / max(1.0, rms(update) / h["d"])
        if h["beta1"]:
            update = m = h["beta1"] * m + (1 - h["beta1"]) * update
        scale = max(rms(p), eps2) if h["scale_parameter"] else 1.0
        p = p * (1 - lr * h["weight_decay"]) - lr * scale * update
        path.append(p)
    return path
