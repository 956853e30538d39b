"""Writes the golden `samplers`: what diffusers' schedulers make of a cheap model, evaluation by evaluation.

    python tests/reference/samplers.py             # --check compares instead of writing

The model is a formula (`model`) that tests/sampling.rs evaluates to the same bits, so that no weights are needed. Requests
are run as diffusers' pipelines run them: StableDiffusionPipeline, and for a `strength` their img2img siblings.
"""

import argparse
import inspect
import json
import sys

import diffusers
import numpy as np
import torch

import goldenfile

SHAPE = (1, 2, 3)  # [C, h, w] of a picture's latents: fewer than 16 numbers
SEED = 11
TOKENS = 300  # for the flow's shift

CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++_2m": "DPMSolverMultistepScheduler",
    "dpm++_2m_karras": "DPMSolverMultistepScheduler",
}
# What the sampler's name says, whatever the configuration does.
FORCED = {"pndm": {"skip_prk_steps": True}, "dpm++_2m": {"use_karras_sigmas": False}, "dpm++_2m_karras": {"use_karras_sigmas": True}}
NO_SAMPLE = ("pndm", "euler_a")

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
SD15 = {"_class_name": "PNDMScheduler", **SD, "set_alpha_to_one": False, "skip_prk_steps": True, "num_train_timesteps": 1000,
        "trained_betas": None}
SD21 = {"_class_name": "DDIMScheduler", **SD, "set_alpha_to_one": False, "skip_prk_steps": True, "prediction_type": "v_prediction"}
SDXL = {"_class_name": "EulerDiscreteScheduler", **SD, "timestep_spacing": "leading", "interpolation_type": "linear",
        "use_karras_sigmas": False, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **SD, "algorithm_type": "dpmsolver++", "solver_order": 2,
       "solver_type": "midpoint", "lambda_min_clipped": float("-inf"), "lower_order_final": True, "variance_type": None}


def round_roots() -> None:
    """Has torch round square roots to the nearest number, as IEEE 754 asks. In torch 2.15 on x86-64 one in six is off by
    the last digit; where sigma is 4096, a step magnifies that to more than the tests allow."""
    power, root = torch.Tensor.__pow__, torch.Tensor.sqrt

    def exact(x: torch.Tensor) -> torch.Tensor:
        return root(x.double()).to(x.dtype)

    torch.Tensor.__pow__ = lambda x, exponent: exact(x) if exponent == 0.5 else power(x, exponent)
    torch.Tensor.sqrt = torch.sqrt = exact


def own(sampler: str) -> dict:
    """Nothing but betas, under the sampler's own class, so that its defaults count."""
    return {"_class_name": CLASSES[sampler], **SD, **({"skip_prk_steps": True} if sampler == "pndm" else {})}


def cases() -> list[dict]:
    found = []

    def case(sampler, config, steps, **more):
        found.append({"sampler": sampler, "config": config, "steps": steps, **more})

    spacings, predictions = ("linspace", "leading", "trailing"), ("epsilon", "v_prediction", "sample")
    for sampler in CLASSES:
        for prediction in predictions[: 2 if sampler in NO_SAMPLE else 3]:
            for spacing in spacings[: 1 if sampler.endswith("karras") else 3]:
                case(sampler, own(sampler) | {"prediction_type": prediction, "timestep_spacing": spacing}, 5)
        for steps in (1, 2, 3, 17):
            case(sampler, SD15, steps)
        for steps, strength in ((10, 1.0), (10, 0.55), (7, 0.3), (20, 0.15)):
            case(sampler, SDXL if sampler == "euler" else SD15, steps, strength=strength)
        case(sampler, own(sampler), 4)
        case(sampler, own(sampler), 6, strength=0.5)
        if sampler != "pndm":
            for spacing in ("trailing", "leading"):
                config = SD21 | {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
                case(sampler, config, 5)
            case(sampler, SD21 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 5, strength=0.7)
        case(sampler, SDXL, 6)
        case(sampler, {"_class_name": "DDPMScheduler", "num_train_timesteps": 37, "clip_sample": False}, 5)
        case(sampler, {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 5)
    for prediction in predictions:
        case("euler", own("euler") | {"use_karras_sigmas": True, "prediction_type": prediction}, 5)
    for more in ({"timestep_spacing": "leading"}, {"final_sigmas_type": "sigma_min"}, {"sigma_min": 0.1, "sigma_max": 10.0}):
        case("euler", own("euler") | {"use_karras_sigmas": True, **more}, 5)
        case("dpm++_2m_karras", own("dpm++_2m") | more, 5)
        case("dpm++_2m", own("dpm++_2m") | more, 5)
    for more in ({"final_sigmas_type": "sigma_min"}, {"solver_type": "heun"}, {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
                 {"lower_order_final": False, "final_sigmas_type": "sigma_min"}):
        case("dpm++_2m", DPM | more, 6)
        case("dpm++_2m", DPM | more, 16)
    case("dpm++_2m", DPM | {"final_sigmas_type": "sigma_min"}, 20, strength=0.2)
    for spacing in spacings:
        clipped = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": spacing}
        case("dpm++_2m", DPM | clipped, 6)
    for eta in (0.5, 1.0):
        case("ddim", SD15, 5, eta=eta, pictures=2)
    for sampler in ("euler_a", "euler", "ddim"):
        case(sampler, SD15, 4, pictures=2)
    case("ddim", {"_class_name": "DDIMScheduler"}, 5)  # clips
    case("ddim", {"_class_name": "DDIMScheduler", "clip_sample_range": 0.4}, 5, eta=0.3)
    trained = [round(0.001 + 0.0007 * i + (0.0003 if i % 3 else 0.0), 6) for i in range(50)]
    for sampler in CLASSES:
        case(sampler, own(sampler) | {"trained_betas": trained, "num_train_timesteps": 50}, 5)
    for config in ({"shift": 1.0}, {"shift": 3.0, "use_dynamic_shifting": True}, {"shift": 3.0}):
        case("euler", FLOW | config, 4)
        for steps, strength in ((4, 0.3), (20, 0.2), (7, 0.6)):
            case("euler", FLOW | config, steps, strength=strength)
    return found


def scheduler(case: dict):
    made = getattr(diffusers, case["config"]["_class_name"]).from_config(case["config"])
    if case["config"]["_class_name"] == FLOW["_class_name"]:
        return made
    return getattr(diffusers, CLASSES[case["sampler"]]).from_config(made.config, **FORCED.get(case["sampler"], {}))


def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Bends `x`, and adds a pattern that grows with the time."""
    numbers = torch.arange(x.numel(), dtype=torch.float32)
    pattern = (numbers * 7 % 11 - 5) * 0.125
    return x / (x.abs() + 1) + pattern.reshape(x.shape) * (time.to(torch.float32) * 0.0009765625)


def set_timesteps(made, flow: bool, steps: int) -> None:
    if not flow:
        made.set_timesteps(steps)
        return
    c = made.config
    mu = diffusers.pipelines.flux.pipeline_flux.calculate_shift(TOKENS, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
    made.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def first(made, flow: bool, steps: int, strength: float) -> int:
    """`get_timesteps` of FluxImg2ImgPipeline and StableDiffusionImg2ImgPipeline."""
    if flow:
        return int(max(steps - min(steps * strength, steps), 0)) * made.order
    return max(steps - min(int(steps * strength), steps), 0) * made.order


def set_begin_index(made, begin: int) -> None:
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(begin)


def run(case: dict) -> dict[str, np.ndarray]:
    made, steps, pictures = scheduler(case), case["steps"], case.get("pictures", 1)
    flow = case["config"]["_class_name"] == FLOW["_class_name"]
    set_timesteps(made, flow, steps)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(pictures)]
    noise = torch.cat([torch.randn(1, *SHAPE, generator=g) for g in generators])
    timesteps, begin, start = made.timesteps, 0, float(getattr(made, "init_noise_sigma", 1.0))
    if "strength" in case:
        begin = first(made, flow, steps, case["strength"])
        timesteps = made.timesteps[begin:]
        set_begin_index(made, begin)
        picture = model(noise.flip(-1), torch.tensor(700.0))
        latest = timesteps[:1]
        x = made.scale_noise(picture, latest, noise) if flow else made.add_noise(picture, noise, latest)
    else:
        # Without it, a schedule whose first timestep is there twice is begun with the second.
        set_begin_index(made, 0)
        x = noise * start
    takes = inspect.signature(made.step).parameters
    more = {"eta": case["eta"]} if "eta" in case else {}
    if "generator" in takes:
        more["generator"] = generators
    latents = [x]
    for t in timesteps:
        given = x if flow else made.scale_model_input(x, t)
        output = model(given, t / 1000 if flow else t)
        x = made.step(output, t, x, return_dict=False, **more)[0]
        latents.append(x)
    times = timesteps.to(torch.float32)
    sigmas = made.sigmas[begin:].to(torch.float32) if hasattr(made, "sigmas") else torch.zeros(0)
    made_of = {"start": torch.tensor([start]), "times": times / 1000 if flow else times, "sigmas": sigmas}
    made_of |= {"latents": torch.stack(latents)}
    return {key: value.to(torch.float32).numpy().reshape(-1) for key, value in made_of.items()}


def timestep_sums() -> list[dict]:
    """Of whole timesteps, for many numbers of steps: the sum of each one times its place."""
    found = []
    for sampler in ("ddim", "pndm", "dpm++_2m"):
        for spacing in ("linspace", "leading", "trailing"):
            made = scheduler({"sampler": sampler, "config": own(sampler) | {"timestep_spacing": spacing}})
            sums = []
            for steps in range(1, 101):
                made.set_timesteps(steps)
                # With 61 steps, trailing timesteps end in a 62nd, which is -1.
                times = [t for t in made.timesteps.tolist() if t >= 0]
                sums.append(sum((i + 1) * t for i, t in enumerate(times)))
            found.append({"name": f"{sampler} {spacing}", "sampler": sampler, "spacing": spacing, "sums": sums})
    return found


DRAWS = [5, 5, 17, 3, 64, 1, 1, 16, 7, 7, 2]


def draws() -> np.ndarray:
    """Draws of different lengths, one after another from the same generators."""
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    return torch.cat([torch.randn(n, generator=g) for n in DRAWS for g in generators]).numpy()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    round_roots()
    diffusers.utils.logging.set_verbosity_error()
    described, numbers = [], []
    for case in cases():
        made = run(case)
        if not all(np.isfinite(value).all() for value in made.values()):
            raise SystemExit(f"not finite: {case}")
        counts = {f"{key}_count": len(made[key]) for key in ("times", "sigmas")}
        # The text of a scheduler_config.json, since Python's infinities are no JSON.
        text = {"config": json.dumps(case["config"])}
        described.append({"name": f"{case['sampler']} {len(described)}"} | case | text | counts)
        numbers += [made[key] for key in ("start", "times", "sigmas", "latents")]
    body = {"made_by": "tests/reference/samplers.py", "seed": SEED, "tokens": TOKENS, "each": int(np.prod(SHAPE)), "cases": described,
            "draws": DRAWS, "timesteps": timestep_sums()}
    tensors = {"numbers": np.concatenate(numbers), "draws": draws()}
    if not arguments.check:
        goldenfile.write("samplers", body, tensors)
        return 0
    differences = goldenfile.compare("samplers", body, tensors)
    print("\n".join(differences) or "samplers: as committed")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
