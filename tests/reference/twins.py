"""Every optimizer once more, in plain numpy and float64, as its paper or reference file writes it.

`twin(p, grads, lrs, h)` takes a start, the gradients and the learning rate of each step, and the
hyperparameters under torch's names, and returns the parameter after every step. These functions share
nothing with the library: a mistake there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.twins_adafactor import big_vision, hf, t5x, torch_adafactor

Array = NDArray[np.float64]
Twin = Callable[[Array, Sequence[Array], Sequence[float], dict[str, Any]], list[Array]]


def sgd(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """torch.optim.SGD: the pseudocode of its documentation."""
    mu, tau, wd = h["momentum"], h["dampening"], h["weight_decay"]
    path, b = [], None
    for g, lr in zip(grads, lrs, strict=True):
        g = g + wd * p
        if mu:
            b = g if b is None else mu * b + (1 - tau) * g
            g = g + mu * b if h["nesterov"] else b
        p = p - lr * g
        path.append(p)
    return path


def rmsprop(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """torch.optim.RMSprop: the pseudocode of its documentation."""
    alpha, mu = h["alpha"], h["momentum"]
    path, v, b, g_ave = [], 0.0 * p, 0.0 * p, 0.0 * p
    for g, lr in zip(grads, lrs, strict=True):
        g = g + h["weight_decay"] * p
        v = alpha * v + (1 - alpha) * g**2
        v_tilde = v
        if h["centered"]:
            g_ave = alpha * g_ave + (1 - alpha) * g
            v_tilde = v - g_ave**2
        if mu:
            b = mu * b + g / (np.sqrt(v_tilde) + h["eps"])
            p = p - lr * b
        else:
            p = p - lr * g / (np.sqrt(v_tilde) + h["eps"])
        path.append(p)
    return path


def adagrad(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """torch.optim.Adagrad: the pseudocode of its documentation."""
    path, state_sum = [], 0.0 * p + h["initial_accumulator_value"]
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        lr_tilde = lr / (1 + (t - 1) * h["lr_decay"])
        g = g + h["weight_decay"] * p
        state_sum = state_sum + g**2
        p = p - lr_tilde * g / (np.sqrt(state_sum) + h["eps"])
        path.append(p)
    return path


def adam(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """arXiv:1412.6980, algorithm 1, with weight decay as an L2 penalty; AMSGrad as torch.optim.Adam."""
    (b1, b2), eps = h["betas"], h["eps"]
    path, m, v, v_max = [], 0.0 * p, 0.0 * p, 0.0 * p
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        g = g + h["weight_decay"] * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - b1**t)
        v_hat = (v_max if h["amsgrad"] else v) / (1 - b2**t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(p)
    return path


def adamw(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """arXiv:1711.05101, algorithm 2, in torch's order and scale: first p <- p - lr wd p."""
    (b1, b2), eps = h["betas"], h["eps"]
    path, m, v, v_max = [], 0.0 * p, 0.0 * p, 0.0 * p
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        p = p - lr * h["weight_decay"] * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - b1**t)
        v_hat = (v_max if h["amsgrad"] else v) / (1 - b2**t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(p)
    return path


def lamb(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """arXiv:1904.00962v5, algorithm 2, phi the identity; a zero norm gives ratio 1. So does, unless
    always_adapt, a weight decay of zero: apex multi_tensor_lamb.cu (after its clipping)."""
    (b1, b2), eps, wd = h["betas"], h["eps"], h["weight_decay"]
    path, m, v = [], 0.0 * p, 0.0 * p
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        update = r + wd * p
        w_norm, u_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(update**2))
        adapts = (h["always_adapt"] or wd != 0) and w_norm > 0 and u_norm > 0
        p = p - lr * (w_norm / u_norm if adapts else 1.0) * update
        path.append(p)
    return path


def lamb_deepspeed(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """DeepSpeed fused_lamb_cuda_kernel.cu, ADAM_MODE_1 (eps outside the root), bias_correction on: m_hat and
    v_hat in both parts, the coefficient clamped where both norms are non-zero."""
    (b1, b2), eps, wd = h["betas"], h["eps"], h["weight_decay"]
    path, m, v = [], 0.0 * p, 0.0 * p
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        update = m_hat / (np.sqrt(v_hat) + eps) + wd * p
        reg_w, reg_u = np.sqrt(np.sum(p * p)), np.sqrt(np.sum(update * update))
        coeff = 1.0
        if (h["always_adapt"] or wd != 0) and reg_w != 0 and reg_u != 0:
            coeff = max(min(reg_w / reg_u, h["trust_high"]), h["trust_low"])
        p = p - lr * coeff * update
        path.append(p)
    return path


def lars(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """timm lars.py with always_adapt: the local rate of arXiv:1708.03888, then torch's SGD."""
    mu, tau, wd = h["momentum"], h["dampening"], h["weight_decay"]
    path, b = [], None
    for g, lr in zip(grads, lrs, strict=True):
        w_norm, g_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(g**2))
        local = 1.0
        if w_norm > 0 and g_norm > 0:
            local = h["trust_coefficient"] * w_norm / (g_norm + wd * w_norm + h["eps"])
        g = (g + wd * p) * local
        if mu:
            b = g if b is None else mu * b + (1 - tau) * g
            g = g + mu * b if h["nesterov"] else b
        p = p - lr * g
        path.append(p)
    return path


def lion(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """arXiv:2302.06675, algorithm 2: p <- p - lr (sign(c) + wd p)."""
    b1, b2 = h["betas"]
    path, m = [], 0.0 * p
    for g, lr in zip(grads, lrs, strict=True):
        c = b1 * m + (1 - b1) * g
        p = p - lr * (np.sign(c) + h["weight_decay"] * p)
        m = b2 * m + (1 - b2) * g
        path.append(p)
    return path


def signum(p: Array, grads: Sequence[Array], lrs: Sequence[float], h: dict[str, Any]) -> list[Array]:
    """arXiv:1802.04434, algorithms 1 (momentum 0) and 2, with decoupled weight decay."""
    beta = h["momentum"]
    path, m = [], 0.0 * p
    for g, lr in zip(grads, lrs, strict=True):
        m = beta * m + (1 - beta) * g
        p = p - lr * (np.sign(m) + h["weight_decay"] * p)
        path.append(p)
    return path


TWINS: dict[tuple[str, str | None], Twin] = {
    ("sgd", None): sgd,
    ("rmsprop", None): rmsprop,
    ("adagrad", None): adagrad,
    ("adam", None): adam,
    ("adamw", None): adamw,
    ("adafactor", "t5x"): t5x,
    ("adafactor", "hf"): hf,
    ("adafactor", "torch"): torch_adafactor,
    ("adafactor", "big_vision"): big_vision,
    ("lamb", "nv"): lamb,
    ("lamb", "paper"): lamb,
    ("lamb", "deepspeed"): lamb_deepspeed,
    ("lars", None): lars,
    ("lion", None): lion,
    ("signum", None): signum,
}
"""Rule and dialect to twin."""
