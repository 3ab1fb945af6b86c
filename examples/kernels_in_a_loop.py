"""A complete small GRPO loop around a Hugging Face model, with the three kernels of `rlvr_kernels`.

    python examples/kernels_in_a_loop.py

The task: continue a prompt of digits with tokens whose parity is that of the prompt's last digit.
The reward is the fraction of tokens that got it right, checked by a program: RLVR in its smallest
form. A model of 30 thousand parameters learns it in some seconds on a CPU; on a CUDA device the
same lines run the Triton kernels.

What a trainer takes over is `update`: hidden states from the trunk, `linear_token_logprobs` for the
trained tokens alone, `group_normalize` for the advantages, `policy_loss` for loss and metrics.
"""

import argparse

import torch
from rlvr_kernels import doctor, group_normalize, linear_token_logprobs, policy_loss
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 16
PROMPT, COMPLETION = 4, 6  # tokens
PROMPTS, SAMPLES = 16, 8  # a step: prompts, and samples of each (the group of GRPO)


def tiny_model(seed: int, device: str) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=PROMPT + COMPLETION,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config).to(device)


@torch.no_grad()
def sample(model: Qwen2ForCausalLM, prompts: torch.Tensor, generator: torch.Generator):
    """Completions [B, COMPLETION] drawn token by token, at temperature 1."""
    ids = prompts
    for _ in range(COMPLETION):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1].float()
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
        ids = torch.cat([ids, drawn.to(ids.device)], 1)
    return ids[:, PROMPT:]


def reward(prompts: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
    """[B] fraction of the completion's tokens with the parity of the prompt's last digit."""
    return (completions % 2 == prompts[:, -1:] % 2).float().mean(1)


def update(model, optimizer, prompts, completions, rewards):
    """One on-policy step; returns the metrics of the loss."""
    ids = torch.cat([prompts, completions], 1)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    # Position t predicts token t + 1; only completion tokens are trained on, and only they are
    # multiplied with the lm_head.
    trained = torch.arange(ids.shape[1] - 1, device=ids.device) >= PROMPT - 1
    found = linear_token_logprobs(
        hidden[:, :-1],
        model.lm_head.weight,
        ids[:, 1:],
        mask=trained.expand(len(ids), -1),
        return_entropy=True,
    )
    mask = trained.expand_as(found.logprobs)
    groups = torch.arange(PROMPTS, device=ids.device).repeat_interleave(SAMPLES)
    advantages = group_normalize(rewards, None, groups, PROMPTS)
    loss, metrics = policy_loss(
        found.logprobs,
        found.logprobs.detach(),
        advantages[:, None],
        mask,
        clip_high=0.28,
        entropy=found.entropy,
        entropy_coef=0.001,
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return metrics


def main(steps: int = 60, seed: int = 0, device: str = "cpu") -> list[float]:
    """Train, print every tenth step, and return the mean reward of each step."""
    for name, line in doctor().items():
        print(f"{name:14}{line}")
    model = tiny_model(seed, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for step in range(steps):
        prompts = torch.randint(0, VOCABULARY, (PROMPTS, PROMPT), generator=generator)
        prompts = prompts.repeat_interleave(SAMPLES, 0).to(device)
        completions = sample(model, prompts, generator)
        rewards = reward(prompts, completions)
        metrics = update(model, optimizer, prompts, completions, rewards)
        curve.append(rewards.mean().item())
        if step % 10 == 0 or step == steps - 1:
            print(
                f"step {step:3d}  reward {curve[-1]:.3f}  "
                f"loss {metrics['loss'].item():+.4f}  entropy {metrics['entropy'].item():.3f}"
            )
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    main(options.steps, options.seed, options.device)
