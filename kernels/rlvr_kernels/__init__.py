"""The loss head and the layers of RLVR as reusable, exact kernels; they need torch alone.

    token_logprobs         log-probs, entropy and log-sum-exp of chosen tokens from logits
    linear_token_logprobs  the same from hidden states and the lm_head, never holding the logits
    linear_token_logprob_partials, combine_partials   the same over a split vocabulary
    group_statistics       mean, deviation and count per group of rewards
    group_normalize        advantages whitened inside each group
    sample_tokens          one token a row from logits, with its log-prob, in one pass
    policy_loss            the clipped REINFORCE++ / PPO token loss with its metrics
    rms_norm, add_rms_norm   RMSNorm of rows, or of their sum with the residual
    rotary_qkv             merged queries, keys and values rotated, and stored to a KV cache
    swiglu                 silu(gate) * up of merged projections
    copy_pages             pages copied inside of a KV cache, all layers in one launch
    adamw_                 AdamW of bf16 weights and moments, rounded stochastically, in one launch
    accumulate_            the sum of bf16 gradients in 24 bits, square_sum its squared norm
    reference              float64-capable plain torch of loss head and layers: the specification
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
from .norm import add_rms_norm, rms_norm
from .pages import copy_pages
from .rotary import rotary_qkv
from .sample import SampledTokens, sample_tokens
from .swiglu import swiglu
from .vocab_parallel import combine_partials, linear_token_logprob_partials

__all__ = [
    "GroupStatistics",
    "SampledTokens",
    "TokenLogprobs",
    "accumulate_",
    "adamw_",
    "add_rms_norm",
    "combine_partials",
    "copy_pages",
    "doctor",
    "group_normalize",
    "group_statistics",
    "linear_token_logprob_partials",
    "linear_token_logprobs",
    "policy_loss",
    "reference",
    "rms_norm",
    "rotary_qkv",
    "sample_tokens",
    "square_sum",
    "swiglu",
    "token_logprobs",
]
__version__ = "0.1.0"
