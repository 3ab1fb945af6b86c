"""A tiny policy trains along the same curve with the kernels' path as with naive formulas."""

import pytest
import torch
import torch.nn.functional as F
from rlvr_kernels import group_normalize, linear_token_logprobs, policy_loss


def naive_step(hidden, weight, ids, rewards, mask, old):
    """The published formulas, written out: whitening, softmax, ratio, clip, token mean, entropy."""
    logp = F.log_softmax(hidden @ weight.T, -1)
    chosen = logp.gather(-1, ids[..., None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)
    advantages = (rewards - rewards.mean()) / (rewards.var() + 1e-8).sqrt()
    old = chosen.detach() if old is None else old
    ratio = (chosen - old).exp()
    a = advantages[:, None]
    surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    return ((-surrogate - 0.001 * entropy) * mask).sum() / mask.sum(), chosen.detach()


def kernel_step(place, hidden, weight, ids, rewards, mask, old):
    found = linear_token_logprobs(
        hidden, weight, ids, mask=mask, return_entropy=True, backend=place.backend
    )
    advantages = group_normalize(rewards, None, torch.zeros_like(ids[:, 0]), 1)
    loss, _ = policy_loss(
        found.logprobs, found.logprobs.detach() if old is None else old, advantages[:, None], mask,
        entropy=found.entropy, entropy_coef=0.001, backend=place.backend,
    )  # fmt: skip
    return loss, found.logprobs.detach()


def curve(step, steps, device):
    """Losses of `steps` updates, two per batch: the second one is off its own samples."""
    torch.manual_seed(7)
    embedding = torch.nn.Embedding(30, 16).to(device)
    trunk = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh()).to(device)
    head = torch.nn.Linear(32, 30, bias=False).to(device)
    parameters = [*embedding.parameters(), *trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses, old = [], None
    for index in range(steps):
        if index % 2 == 0:
            ids = torch.randint(0, 30, (12, 9), device=device)
            mask = torch.rand(12, 9, device=device) > 0.3
            rewards, old = (ids % 3 == 0).float().mean(1), None
        loss, chosen = step(trunk(embedding(ids)), head.weight, ids, rewards, mask, old)
        old = chosen if old is None else old
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_twenty_steps_of_a_tiny_policy(place):
    steps = 4 if place.name == "interpreted" else 20  # the interpreter takes half a second a step
    naive = curve(naive_step, steps, place.device)
    ours = curve(lambda *args: kernel_step(place, *args), steps, place.device)
    assert ours == pytest.approx(naive, rel=0, abs=1e-5)
    assert max(abs(loss) for loss in naive) > 1e-2  # the second updates have something to show
