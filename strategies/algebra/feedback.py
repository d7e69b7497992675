"""Error feedback: what a lossy code leaves out of one round's update is added to the next round's.

Seide et al., "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech
DNNs", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
arXiv 1901.09847, Algorithm 2:

    p_t = u_t + e_t,     what is sent is C(p_t),     e_{t+1} = p_t - C(p_t)

so that sum_t C(p_t) + e_T = sum_t u_t: nothing is lost, only delayed. A tensor may change its shape from round to
round, as factors do with the rank: leading slices belong together, and errors beyond an update's shape wait until they
fit again, as does the error of a tensor that a round does not send.
"""

from collections.abc import Mapping

import torch

from strategies.algebra.tensors import Tensors, corner


def compensated(update: Mapping[str, torch.Tensor], errors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return p = u + e for the floating tensors, in float32 or wider; others unchanged. Tensors with an e are new."""
    return {n: _plus(t, errors.get(n)) if t.is_floating_point() else t for n, t in update.items()}


def remember(errors: Tensors, wanted: Mapping[str, torch.Tensor], restored: Mapping[str, torch.Tensor]) -> None:
    """Replace the errors by e = p - C(p); `restored` is C(p) as the server has it."""
    for name, tensor in wanted.items():
        if tensor.is_floating_point():
            error = _replaced(errors.pop(name, None), tensor - restored[name].to(tensor.dtype))
            if error.any():
                errors[name] = error


def _plus(update: torch.Tensor, error: torch.Tensor | None) -> torch.Tensor:
    wanted = update if update.dtype == torch.float64 else update.float()
    if error is None or error.dim() != update.dim():
        return wanted
    wanted = wanted.clone()
    common = torch.Size(map(min, update.shape, error.shape))
    corner(wanted, common).add_(corner(error, common))
    return wanted


def _replaced(old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    """Return the new errors, and the old ones beyond their shape."""
    if old is None or old.dim() != new.dim() or all(map(int.__le__, old.shape, new.shape)):
        return new
    both = new.new_zeros(torch.Size(map(max, old.shape, new.shape)))
    corner(both, old.shape).copy_(old)
    corner(both, new.shape).copy_(new)
    return both
