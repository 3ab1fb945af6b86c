"""The loss head of RLVR as reusable, exact kernels; torch is the only requirement.

    token_logprobs         log-probs, entropy and log-sum-exp of chosen tokens from logits
    linear_token_logprobs  the same from hidden states and the lm_head, never holding the logits
    linear_token_logprob_partials, combine_partials   the same over a split vocabulary
    group_statistics       mean, deviation and count per group of rewards
    group_normalize        advantages whitened inside each group
    sample_tokens          one token a row from logits, with its log-prob, in one pass
    policy_loss            the clipped REINFORCE++ / PPO token loss with its metrics
    adamw_                 AdamW of bf16 weights and moments, rounded stochastically, in one launch
    accumulate_            the sum of bf16 gradients in 24 bits, square_sum its squared norm
    reference              float64-capable plain torch of each: the specification
    doctor                 which backend will run here, and why

Triton kernels run on CUDA (sm_80 and newer); everywhere else the same functions run in torch.
"""

from . import reference
from .adamw import accumulate_, adamw_, square_sum
from .backend import doctor
from .groups import GroupStatistics, group_normalize, group_statistics
from .linear_logprob import linear_token_logprobs
from .logprob import TokenLogprobs, token_logprobs
from .loss import policy_loss
from .sample import SampledTokens, sample_tokens
from .vocab_parallel import combine_partials, linear_token_logprob_partials

__all__ = [
    "GroupStatistics",
    "SampledTokens",
    "TokenLogprobs",
    "accumulate_",
    "adamw_",
    "combine_partials",
    "doctor",
    "group_normalize",
    "group_statistics",
    "linear_token_logprob_partials",
    "linear_token_logprobs",
    "policy_loss",
    "reference",
    "sample_tokens",
    "square_sum",
    "token_logprobs",
]
__version__ = "0.1.0"
