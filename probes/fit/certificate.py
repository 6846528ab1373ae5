"""How far a softmax regression is from its optimum, at most."""

from __future__ import annotations

import torch

__all__ = ["duality_gap"]


def duality_gap(
    loss: float, gradient: torch.Tensor, theta: torch.Tensor, l2: float, frequency: torch.Tensor
) -> float:
    """An upper bound on F(W, b) - min F, where F(W, b) = loss(W, b) + l2/2 ||W||^2.

    Args:
        loss: mean cross-entropy at theta = [W b], nats.
        gradient: of the loss, 1/n sum_i (a_i - e_i) [z_i 1] with a_i = softmax(W z_i + b) and e_i the one-hot
            label, shape (C, size + 1); the features z_i are standardised.
        theta: [W b], shape (C, size + 1).
        l2: strength of the regularisation, positive.
        frequency: of the classes, 1/n sum_i e_i.

    logsumexp(u) is the maximum of a u + H(a) over the simplex, H the entropy. So for any a_i in the simplex

        F(W, b) >= 1/n sum_i [(a_i - e_i) (W z_i + b) + H(a_i)] + l2/2 ||W||^2,

    and if moreover sum_i a_i = sum_i e_i, the bias drops out, and minimising over W leaves

        min F >= D(a) = 1/n sum_i H(a_i) - ||G(a)||^2 / (2 l2),    G(a) = 1/n sum_i (a_i - e_i) z_i.

    The bound is F - D at a_i = softmax(W z_i + b), which is ||dF/dW||^2 / (2 l2) where the bias is optimal.
    Where it is not, the a_i are mixed with one distribution q to make the sums match: (1 - t) a_i + t q, with
    the least t for which q is one. The mixture's entropy is at least (1 - t) H(a_i) + t H(q), for entropy is
    concave, and G moves by t times the mean of (q - a_i) z_i, whose norm is at most sqrt(2) times the mean
    norm of standardised features, sqrt(size); two in place of sqrt(2) allows for their rounding.

    All this follows from the arguments; float64 ones leave an error around 1e-15 of the loss.
    """
    mean = gradient[:, -1] + frequency
    entropy = loss - float((gradient * theta).sum())
    t = float((1 - frequency / mean).max().clamp(min=0))
    norm = float(gradient[:, :-1].norm())
    if t > 0:
        q = (mean + (frequency - mean) / t).clamp(min=0)
        entropy = (1 - t) * entropy + t * float(torch.special.entr(q).sum())
        norm += 2 * t * (theta.shape[1] - 1) ** 0.5
    return loss + l2 / 2 * float(theta[:, :-1].square().sum()) - (entropy - norm**2 / (2 * l2))
