"""How large the synthesised weights are: the first rule whose pattern is found in a tensor's name decides.

A random network is a useful golden only if nothing in it dies, explodes or saturates: then an error anywhere reaches the
output at about its own size. So matrices keep the variance of their input times gain squared, norms stay near one,
attention logits have a standard deviation of about 1.5, and layers that training starts from zero are not zero.
`health.py` checks all that on the models that come out.
"""

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gain:
    """A matrix or convolution kernel whose output has `gain` squared times the mean square of its input."""

    gain: float

    def scale_offset(self, shape: list[int]) -> tuple[float, float]:
        fan_in = math.prod(shape[1:])
        return round(math.sqrt(3 / fan_in) * self.gain, 6), 0.0


@dataclass(frozen=True)
class Around:
    """Uniform within `scale` of `offset`."""

    scale: float
    offset: float = 0.0

    def scale_offset(self, shape: list[int]) -> tuple[float, float]:
        return self.scale, self.offset


# Second moments behind an activation for a unit normal input: SiLU 0.36, GELU 0.43. A gain of 1.6 makes up for them.
AFTER_ACTIVATION = Gain(1.6)
NORM = Around(0.2, 1.0)

TRANSFORMER = [
    (r"\.norm_(added_)?[qk]\.weight$", Around(0.3, 1.2)),  # logits of std 1.2 * 1.2 whatever the head size
    (r"norm\w*\.linear\.bias$", Around(0.3)),
    (r"norm\w*\.linear\.weight$", Gain(0.35)),  # shifts, scales and gates
    (r"attn\.(to|add)_[qk](_proj)?\.bias$", Around(0.8)),  # softmax and norm leave little of them
    (r"\.bias$", Around(0.2)),
    (r"_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"_embedder\.linear_2\.weight$", AFTER_ACTIVATION),
    (r"(ff|ff_context)\.net\.2\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$|to_add_out\.weight$", Gain(2.0)),  # attention averages, so its output is small
    (r"single_transformer_blocks\.\d+\.proj_out\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]

CLIP = [
    (r"token_embedding\.weight$", Around(0.7)),
    (r"position_embedding\.weight$", Around(0.35)),
    (r"norm\d?\.weight$", NORM),
    (r"[qk]_proj\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.2)),
    (r"[qk]_proj\.weight$", Gain(1.2)),
    (r"fc2\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]


def t5(d_kv: int) -> list:
    """T5 does not divide its logits by sqrt(d_kv): its trained queries are that much smaller."""
    return [
        (r"^shared\.weight$", Around(1.7)),
        (r"relative_attention_bias\.weight$", Around(1.5)),
        (r"norm\.weight$", NORM),
        (r"\.q\.weight$", Gain(round(1.4 / math.sqrt(d_kv), 4))),
        (r"\.weight$", Gain(1.0)),
    ]


VAE = [
    (r"norm\w*\.weight$", NORM),
    (r"to_[qk]\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.25)),
    (r"to_[qk]\.weight$", Gain(1.2)),
    (r"to_out\.0\.weight$", Gain(2.0)),
    (r"\.conv[12]\.weight$", AFTER_ACTIVATION),
    (r"^decoder\.conv_in\.weight$", Gain(0.4)),  # latents arrive divided by the scaling factor
    (r"^decoder\.conv_out\.weight$", Gain(0.7)),  # a picture mostly within -1..1
    (r"^encoder\.conv_out\.weight$", AFTER_ACTIVATION),
    (r"\.weight$", Gain(1.0)),
]


def scale_offset(rules: list, name: str, shape: list[int]) -> tuple[float, float]:
    """Scale and offset for one tensor."""
    for pattern, rule in rules:
        if re.search(pattern, name):
            return rule.scale_offset(shape)
    raise KeyError(f"no rule for {name}")
