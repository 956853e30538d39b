"""Writes src/sample/reference.rs: what torch and diffusers give, as constants for the unit tests of src/sample.

    python tests/reference/sampling_literals.py

The values of one run are committed. torch's last digits depend on the processor (it has other code for AVX2), so a run
elsewhere may change them by less than the tests' tolerance of 1e-6.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

TARGET = Path(__file__).resolve().parents[2] / "src" / "sample" / "reference.rs"

SEEDS = [0, 42, 2**32 + 5, 2**63, 2**64 - 1]
# Of long tensors, every how many-th number is recorded.
STRIDES = {5: 1, 17: 1, 64: 5, 262144: 16411}

FLUX_DEV = {"shift": 3.0, "use_dynamic_shifting": True}
SCHEDULES = [
    ("schnell", {"shift": 1.0}, 4, 4096),
    ("one step", {}, 1, 256),
    ("miniature", {"shift": 1.0}, 20, 64),
    ("dev at 256x256", FLUX_DEV, 5, 256),
    ("dev at 1024x1024", FLUX_DEV, 28, 4096),
    ("dev between", FLUX_DEV, 7, 1001),
    ("dev beyond the largest size", FLUX_DEV, 6, 9216),
    ("static shift", {"shift": 3.0}, 7, 1024),
    ("linear", {"use_dynamic_shifting": True, "time_shift_type": "linear"}, 6, 2048),
    (
        "stretched",
        {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        9,
        4096,
    ),
]


def literals(values) -> str:
    """Shortest digits that give each float32 back."""
    return "[" + ", ".join(np.format_float_positional(np.float32(v), trim="0") for v in values) + "]"


def noise() -> str:
    rows = []
    for seed in SEEDS:
        for n, stride in STRIDES.items():
            numbers = torch.randn(n, generator=torch.Generator().manual_seed(seed))
            rows.append(f"    ({seed}, {n}, {stride}, &{literals(numbers[::stride])}),\n")
    return "".join(rows)


def rust_string(text: str) -> str:
    return f'r#"{text}"#'


def schedule(name: str, config: dict, steps: int, tokens: int) -> str:
    """As FluxPipeline calls the scheduler, and what the transformer makes of its timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    c = scheduler.config
    mu = calculate_shift(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    embedded = (scheduler.timesteps / 1000) * 1000
    return (
        f"    Schedule {{\n        name: {json.dumps(name)},\n        config: {rust_string(json.dumps(config))},\n"
        f"        steps: {steps},\n        image_tokens: {tokens},\n"
        f"        sigmas: &{literals(scheduler.sigmas)},\n        embedded: &{literals(embedded)},\n    }},\n"
    )


def steps() -> str:
    """Two Euler steps and one combination, over numbers whose products and sums all round."""
    generator = torch.Generator().manual_seed(7)
    latents, velocity, other = (torch.randn(6, generator=generator) for _ in range(3))
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_DEV)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 3, 3), mu=0.7)
    after = latents
    for t in scheduler.timesteps[:2]:
        after = scheduler.step(velocity, t, after, return_dict=False)[0]
    guided = other + 3.7 * (velocity - other)
    names = {"SIGMAS": scheduler.sigmas, "LATENTS": latents, "VELOCITY": velocity, "OTHER": other, "AFTER": after, "GUIDED": guided}
    return "".join(f"pub(super) const {k}: &[f32] = &{literals(v)};\n" for k, v in names.items())


def main() -> None:
    made = f"torch {torch.__version__.split('+')[0]} ({torch.backends.cpu.get_cpu_capability()}), diffusers {diffusers.__version__}"
    TARGET.write_text(
        f"""//! What PyTorch and diffusers give: made by tests/reference/sampling_literals.py with {made}.

/// `(seed, n, stride, every stride-th number of torch.randn(n))`.
pub(super) const NOISE: &[(u64, usize, usize, &[f32])] = &[
{noise()}];

/// One schedule of diffusers' FlowMatchEulerDiscreteScheduler, called as FluxPipeline calls it.
pub(super) struct Schedule {{
    pub(super) name: &'static str,
    pub(super) config: &'static str,
    pub(super) steps: usize,
    pub(super) image_tokens: usize,
    pub(super) sigmas: &'static [f32],
    /// The timesteps, divided by 1000 in the pipeline and multiplied again in the transformer.
    pub(super) embedded: &'static [f32],
}}

pub(super) const SCHEDULES: &[Schedule] = &[
{"".join(schedule(*case) for case in SCHEDULES)}];

// AFTER is LATENTS after the first two steps along VELOCITY; GUIDED is OTHER + 3.7 (VELOCITY - OTHER).
{steps()}""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
