"""Writes the golden `samplers`: what diffusers' schedulers make of a cheap model, evaluation by evaluation.

    python tests/reference/samplers.py             # --check compares instead of writing

The model is a formula (`model`) that tests/parts/sampling.rs evaluates to the same bits, so that no weights are needed. Requests
are run as diffusers' pipelines run them: StableDiffusionPipeline, and for a `strength` their img2img siblings.
"""

import argparse
import contextlib
import inspect
import json
import sys
import warnings

import diffusers
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_utils import AysSchedules

import goldenfile

SHAPE = (1, 2, 3)  # [C, h, w] of a picture's latents: fewer than 16 numbers
SEED = 11
TOKENS = 300  # for the flow's shift
LONG = 20  # From so many steps on, only the last latents are kept.

CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++_2m": "DPMSolverMultistepScheduler",
    "dpm++_2m_sde": "DPMSolverMultistepScheduler",
    "dpm++_2s": "DPMSolverSinglestepScheduler",
    "dpm++_sde": "DPMSolverSDEScheduler",
    "ddpm": "DDPMScheduler",
    "lms": "LMSDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_a": "KDPM2AncestralDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
FLOW_CLASSES = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "euler_a": "LTXEulerAncestralRFScheduler",
    "dpm++_2m": "DPMSolverMultistepScheduler",
    "dpm++_2m_sde": "DPMSolverMultistepScheduler",
    "dpm++_2s": "DPMSolverSinglestepScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
# Of these, those that are along a flow if they are told so.
FLOW_SIGMAS = ("dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "deis", "unipc")
# What the sampler's name says, whatever the configuration does.
FORCED = {"pndm": {"skip_prk_steps": True}, "dpm++_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
# What a schedule's name says.
SCHEDULES = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "ays": {},
    "lu": {"use_lu_lambdas": True},
}
FLAGS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
TOLD = ("karras", "exponential", "beta", "sgm_uniform")  # schedules of samplers that can be told sigmas
MULTISTEP = ("dpm++_2m", "dpm++_2m_sde")
NO_SAMPLE = ("pndm", "euler_a", "kdpm2", "kdpm2_a", "dpm++_sde")
WHOLE = ("ddim", "ddpm", "pndm", "lcm", "tcd")
PREDICTIONS = ("epsilon", "v_prediction", "sample")

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
SD15 = {"_class_name": "PNDMScheduler", **SD, "set_alpha_to_one": False, "skip_prk_steps": True, "num_train_timesteps": 1000,
        "trained_betas": None}
SD21 = {"_class_name": "DDIMScheduler", **SD, "set_alpha_to_one": False, "skip_prk_steps": True, "prediction_type": "v_prediction"}
SDXL = {"_class_name": "EulerDiscreteScheduler", **SD, "timestep_spacing": "leading", "interpolation_type": "linear",
        "use_karras_sigmas": False, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **SD, "algorithm_type": "dpmsolver++", "solver_order": 2,
       "solver_type": "midpoint", "lambda_min_clipped": float("-inf"), "lower_order_final": True, "variance_type": None}
WAN = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0,
       "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "final_sigmas_type": "zero", "lower_order_final": True,
       "timestep_spacing": "linspace", "disable_corrector": [], "solver_p": None}


def exactly(function):
    """`function` of torch, rounded once."""
    return lambda x, *more: function(x.double(), *more).to(x.dtype) if isinstance(x, torch.Tensor) else function(x, *more)


@contextlib.contextmanager
def rounding_once():
    """Has torch and NumPy round roots, logarithms and exponentials of single precision to the nearest number. Theirs are off by
    the last digit, by other ones on other processors; where sigma is 4096, where DEIS takes the difference of two integrals, or
    where torchsde rounds a time to a millionth, that is magnified to more than the tests allow."""
    power, log, names = torch.Tensor.__pow__, np.log, ("sqrt", "log", "exp", "expm1")
    kept = [(owner, name, getattr(owner, name)) for owner in (torch, torch.Tensor) for name in names]
    root = exactly(torch.Tensor.sqrt)
    torch.Tensor.__pow__ = lambda x, exponent: root(x) if exponent == 0.5 else power(x, exponent)
    for name in names:
        patched = exactly(getattr(torch.Tensor, name))
        setattr(torch.Tensor, name, patched)
        setattr(torch, name, patched)

    def numpy_log(x, *more, **named):
        if isinstance(x, torch.Tensor):
            return torch.from_numpy(np.asarray(numpy_log(x.numpy())))
        single = np.asarray(x).dtype == np.float32
        return log(np.asarray(x, np.float64)).astype(np.float32)[()] if single else log(x, *more, **named)

    np.log = numpy_log
    try:
        yield
    finally:
        np.log, torch.Tensor.__pow__ = log, power
        for owner, name, function in kept:
            setattr(owner, name, function)


def own(sampler: str) -> dict:
    """Nothing but betas, under the sampler's own class, so that its defaults count."""
    return {"_class_name": CLASSES[sampler], **SD, **FORCED.get(sampler, {})}


def bare(sampler: str) -> dict:
    """Nothing at all, so that all defaults of the sampler's class count."""
    return {"_class_name": CLASSES[sampler], **FORCED.get(sampler, {})}


def schedules(sampler: str) -> tuple[str, ...]:
    """The schedules of a sampler beside `normal`."""
    return {
        "euler": TOLD, "heun": TOLD, "lms": TOLD, "kdpm2": TOLD, "kdpm2_a": TOLD, "dpm++_sde": TOLD, "deis": TOLD, "unipc": TOLD,
        "dpm++_2m": (*TOLD, "lu"), "dpm++_2m_sde": (*TOLD, "lu"), "dpm++_2s": TOLD[:3], "lcm": (), "tcd": (),
    }.get(sampler, ("sgm_uniform",))


def cases() -> list[dict]:
    found = []

    def case(sampler, config, steps, **more):
        found.append({"sampler": sampler, "config": config, "steps": steps, **more})

    spacings = ("linspace", "leading", "trailing")
    for sampler in CLASSES:
        for prediction in PREDICTIONS[: 2 if sampler in NO_SAMPLE else 3]:
            has_spacing = sampler not in ("lcm", "tcd", "dpm++_2s")
            for spacing in spacings[: 3 if has_spacing else 1]:
                case(sampler, own(sampler) | {"prediction_type": prediction, "timestep_spacing": spacing}, 5)
        for steps in (1, 2, 3, 7, 17, 20):
            case(sampler, SD15, steps)
        for schedule in schedules(sampler):
            case(sampler, SD15, 7, schedule=schedule)
            for steps in (1, 2, 3, 20):
                case(sampler, own(sampler), steps, schedule=schedule)
            case(sampler, own(sampler) | {"prediction_type": "v_prediction"}, 6, schedule=schedule, strength=0.6)
        for steps, strength in ((10, 1.0), (10, 0.55), (7, 0.3), (20, 0.15)):
            case(sampler, SDXL if sampler == "euler" else SD15, steps, strength=strength)
        case(sampler, bare(sampler), 4)
        case(sampler, own(sampler), 6, strength=0.5)
        if sampler != "pndm":
            for spacing in ("trailing", "leading"):
                config = SD21 | {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
                case(sampler, config, 5)
            case(sampler, SD21 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 5, strength=0.7)
        case(sampler, SDXL, 6)
        if sampler not in ("lcm", "tcd"):
            case(sampler, {"_class_name": "DDPMScheduler", "num_train_timesteps": 37, "clip_sample": False}, 5)
        if sampler != "kdpm2_a":  # aims below 0 by a rounding error, at such sigmas
            case(sampler, {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 5)
        trained = [round(0.001 + 0.0007 * i + (0.0003 if i % 3 else 0.0), 6) for i in range(50)]
        case(sampler, own(sampler) | {"trained_betas": trained, "num_train_timesteps": 50}, 5)
        case(sampler, SD15, 4, pictures=2)
    stable_diffusion(case, spacings)
    solvers(case)
    flows(case)
    edm(case)
    return found


def stable_diffusion(case, spacings) -> None:
    """What single samplers have over discrete timesteps."""
    for schedule in TOLD[:3]:
        for prediction in PREDICTIONS:
            case("euler", own("euler") | SCHEDULES[schedule] | {"prediction_type": prediction}, 5)
    for more in ({"timestep_spacing": "leading"}, {"final_sigmas_type": "sigma_min"}, {"sigma_min": 0.1, "sigma_max": 10.0}):
        for schedule in TOLD[:3]:
            case("euler", own("euler") | SCHEDULES[schedule] | more, 5)
            for sampler in ("dpm++_2m", "heun", "lms", "kdpm2", "dpm++_sde", "unipc", "deis", "dpm++_2s"):
                # As settings of another class, so that those that are not the sampler's own are passed over.
                case(sampler, SD15 | more | SCHEDULES[schedule], 5)
        case("dpm++_2m", own("dpm++_2m") | more, 5)
    for spacing in spacings:
        clipped = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": spacing}
        case("dpm++_2m", DPM | clipped, 6)
        case("dpm++_2s", DPM | clipped, 6)
    for schedule in ("karras", "lu", "exponential"):
        for sampler in ("dpm++_2m", "dpm++_2s", "unipc"):
            case(sampler, own(sampler) | {"beta_schedule": "squaredcos_cap_v2"} | SCHEDULES[schedule], 6)
    for eta in (0.5, 1.0):
        case("ddim", SD15, 5, eta=eta, pictures=2)
        case("tcd", SD15, 5, eta=eta, pictures=2)
    case("tcd", SD15, 7, eta=0.3)
    for config in ({}, {"clip_sample_range": 0.4}, {"clip_sample": True, "clip_sample_range": 0.7}):
        for sampler in ("ddim", "ddpm", "lcm", "heun"):
            case(sampler, bare(sampler) | config, 5)
    case("ddim", bare("ddim") | {"clip_sample_range": 0.4}, 5, eta=0.3)
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        case("ddpm", bare("ddpm") | {"variance_type": variance}, 5, pictures=2)
    for sampler in ("ddim", "ddpm", "lcm", "dpm++_2m", "dpm++_2s", "deis", "unipc"):
        for more in ({"sample_max_value": 1.5}, {"sample_max_value": 5.0, "dynamic_thresholding_ratio": 0.7}):
            case(sampler, own(sampler) | {"thresholding": True} | more, 5, pictures=2)
    for sampler in ("lcm", "tcd"):
        for more in ({"original_inference_steps": 20}, {"timestep_scaling": 1.0}, {"set_alpha_to_one": False}):
            case(sampler, own(sampler) | more, 4)
    for sampler in ("euler", "heun", "dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "ddpm"):
        case(sampler, SD15, 10, schedule="ays")
        case(sampler, SD15, 10, schedule="ays", strength=0.45)
    case("euler", SD15, 4, sigmas=[14.5, 3.0, 1.25, 0.25])
    case("euler", SDXL | {"prediction_type": "v_prediction"}, 3, sigmas=[10.0, 2.0, 0.5], strength=0.7)
    case("dpm++_sde", own("dpm++_sde") | {"noise_sampler_seed": 2**40 + 3}, 4, pictures=2)


def solvers(case) -> None:
    """Settings of DPM-Solver, DEIS and UniPC."""
    to_sigma_min = {"final_sigmas_type": "sigma_min"}
    for order in (1, 2, 3):
        for kind in ("midpoint", "heun"):
            for lower in (True, False):
                more = {"solver_order": order, "solver_type": kind, "lower_order_final": lower}
                for steps in (6, 7, 16):
                    for sampler in ("dpm++_2m", "dpm++_2m_sde", "dpm++_2s"):
                        if steps != 7 or sampler == "dpm++_2s":
                            case(sampler, own(sampler) | more | to_sigma_min, steps)
                case("dpm++_2m", own("dpm++_2m") | more, 6)
                case("dpm++_2s", own("dpm++_2s") | more | {"algorithm_type": "sde-dpmsolver++"}, 6)
                for algorithm in ("dpmsolver", "sde-dpmsolver"):
                    sampler = "dpm++_2m" if algorithm == "dpmsolver" else "dpm++_2m_sde"
                    if algorithm == "dpmsolver" or order < 3:
                        case(sampler, DPM | more | to_sigma_min | {"algorithm_type": algorithm}, 6)
                case("dpm++_2s", own("dpm++_2s") | more | to_sigma_min | {"algorithm_type": "dpmsolver"}, 6)
        for prediction in PREDICTIONS:
            config = DPM | to_sigma_min | {"algorithm_type": "dpmsolver", "solver_order": order, "prediction_type": prediction}
            case("dpm++_2m", config, 5)
        for lower in (True, False):
            case("deis", own("deis") | {"solver_order": order, "lower_order_final": lower}, 6)
            case("deis", own("deis") | {"solver_order": order, "lower_order_final": lower}, 16)
        case("deis", own("deis") | {"solver_order": order}, 8, strength=0.7)
        case("dpm++_2s", own("dpm++_2s") | {"solver_order": order}, 9, strength=0.6)
    case("dpm++_2m", DPM | {"euler_at_final": True} | to_sigma_min, 16)
    case("dpm++_2m", DPM | to_sigma_min, 20, strength=0.2)
    for order in (1, 2, 3, 4):
        for kind in ("bh1", "bh2"):
            for lower in (True, False):
                for x0 in (True, False):
                    more = {"solver_order": order, "solver_type": kind, "lower_order_final": lower, "predict_x0": x0}
                    case("unipc", own("unipc") | more | to_sigma_min, 7)
        case("unipc", own("unipc") | {"solver_order": order}, 7)
        case("unipc", own("unipc") | {"solver_order": order, "disable_corrector": [0, 2]}, 7)
    for x0 in (True, False):
        for prediction in PREDICTIONS:
            case("unipc", own("unipc") | to_sigma_min | {"predict_x0": x0, "prediction_type": prediction}, 5)
    for schedule in TOLD[:3]:
        case("unipc", own("unipc") | to_sigma_min | SCHEDULES[schedule], 5)


def flows(case) -> None:
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
    for sampler in FLOW_CLASSES:
        for config in ({"shift": 1.0}, {"shift": 3.0}, *([] if sampler == "heun" else [dynamic])):
            for steps in (1, 2, 3, 7, 20):
                case(sampler, FLOW | config, steps)
            if sampler != "euler_a":
                for steps, strength in ((4, 0.3), (20, 0.2), (7, 0.6)):
                    case(sampler, FLOW | config, steps, strength=strength)
        if sampler in ("euler", "lcm", "unipc"):
            for schedule in TOLD[: 1 if sampler == "unipc" else 3]:
                for steps in (1, 2, 7):
                    case(sampler, FLOW | dynamic, steps, schedule=schedule)
            case(sampler, FLOW | {"shift": 3.0}, 3, sigmas=[1.0, 0.75, 0.125])
        if sampler not in ("heun", "euler_a"):
            case(sampler, FLOW | {"shift": 2.0}, 4, pictures=2)
    for more in ({"shift_terminal": 0.1}, {"time_shift_type": "linear"}):
        for sampler in ("euler", "lcm", "unipc"):
            case(sampler, FLOW | dynamic | more, 5)
    case("lcm", FLOW | {"stochastic_sampling": True}, 5)
    for more in ({}, {"flow_shift": 5.0}, {"flow_shift": 16.0}, {"final_sigmas_type": "sigma_min"}, {"solver_order": 3},
                 {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}, {"use_karras_sigmas": True},
                 {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, {"use_dynamic_shifting": True},
                 {"disable_corrector": [0]}):
        for steps in (1, 2, 3, 7, 20, 50):
            case("unipc", WAN | more, steps)
    for sampler in ("dpm++_2m", "dpm++_2m_sde", "dpm++_2s", "deis"):
        config = {key: value for key, value in WAN.items() if key != "solver_p"} | {"_class_name": CLASSES[sampler]}
        for more in ({}, {"solver_order": 3}, {"final_sigmas_type": "sigma_min", "solver_type": "heun"}):
            case(sampler, config | FORCED.get(sampler, {}) | more, 7)
            case(sampler, config | FORCED.get(sampler, {}) | more, 16)


def edm(case) -> None:
    config = {"_class_name": "EDMEulerScheduler"}
    for schedule in ("karras", "exponential"):
        for prediction in PREDICTIONS[:2]:
            for steps in (1, 2, 3, 7, 20):
                case("edm_euler", config | {"sigma_schedule": schedule, "prediction_type": prediction}, steps)
    more = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0, "final_sigmas_type": "sigma_min"}
    case("edm_euler", config | more, 5)
    case("edm_euler", config | more, 5, strength=0.6)


def is_flow(case: dict) -> bool:
    return case["config"]["_class_name"] in FLOW_CLASSES.values() and (
        case["config"]["_class_name"].startswith("Flow") or case["config"].get("use_flow_sigmas", False))


def scheduler(case: dict):
    config, sampler = case["config"], case["sampler"]
    told = dict(FORCED.get(sampler, {}))
    if "algorithm_type" in told and config.get("algorithm_type", "").startswith("sde"):
        told.pop("algorithm_type")
    if case.get("schedule"):
        told |= FLAGS | SCHEDULES[case["schedule"]] if case["schedule"] in TOLD[:3] else SCHEDULES[case["schedule"]]
    if sampler == "dpm++_sde" and "noise_sampler_seed" not in config:
        told["noise_sampler_seed"] = [SEED + i for i in range(case.get("pictures", 1))]
    if config["_class_name"] == "EDMEulerScheduler":
        return diffusers.EDMEulerScheduler.from_config(config)
    if is_flow(case):
        if config["_class_name"] == FLOW["_class_name"] and sampler in FLOW_SIGMAS:
            told |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config.get("shift", 1.0)}
            config = config | {"_class_name": CLASSES[sampler]}
        return getattr(diffusers, FLOW_CLASSES[sampler]).from_config(config, **told)
    return getattr(diffusers, CLASSES[sampler]).from_config(config, **told)


def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Bends `x`, and adds a pattern that grows with the time."""
    numbers = torch.arange(x.numel(), dtype=torch.float32)
    pattern = (numbers * 7 % 11 - 5) * 0.125
    return x / (x.abs() + 1) + pattern.reshape(x.shape) * (time.to(torch.float32) * 0.0009765625)


def set_timesteps(made, case: dict) -> None:
    steps, sigmas = case["steps"], case.get("sigmas")
    if case.get("schedule") == "ays":
        made.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    elif not is_flow(case):
        if sigmas:
            made.set_timesteps(sigmas=[*sigmas, 0.0])
        else:
            made.set_timesteps(steps)
    elif case["sampler"] in FLOW_SIGMAS:
        c, more = case["config"], {}
        if c.get("use_dynamic_shifting"):
            more["mu"] = calculate_shift(TOKENS)
        if sigmas:
            more["sigmas"] = np.array(sigmas)
        made.set_timesteps(steps, **more)
    elif case["sampler"] == "heun":
        made.set_timesteps(steps)
    else:
        base = made
        if case["sampler"] == "euler_a":
            base = diffusers.FlowMatchEulerDiscreteScheduler.from_config(case["config"])
        base.set_timesteps(sigmas=sigmas or np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(TOKENS))
        if case["sampler"] == "euler_a":
            made.set_timesteps(sigmas=base.sigmas)
            made.timesteps = base.timesteps


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
    flow = is_flow(case)
    set_timesteps(made, case)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(pictures)]
    noise = torch.cat([torch.randn(1, *SHAPE, generator=g) for g in generators])
    timesteps, begin, start = made.timesteps, 0, float(getattr(made, "init_noise_sigma", 1.0))
    if "strength" in case:
        begin = first(made, flow, steps, case["strength"])
        timesteps = made.timesteps[begin:]
        set_begin_index(made, begin)
        picture = model(noise.flip(-1), torch.tensor(700.0))
        latest = timesteps[:1]
        x = made.scale_noise(picture, latest, noise) if hasattr(made, "scale_noise") else made.add_noise(picture, noise, latest)
    else:
        # Without it, a schedule whose first timestep is there twice is begun with the second.
        set_begin_index(made, 0)
        x = noise * start
    takes = inspect.signature(made.step).parameters
    # Pipelines pass 0 if nothing else is asked for, whatever the scheduler's own default is.
    more = {"eta": case.get("eta", 0.0)} if "eta" in takes else {}
    if "generator" in takes:
        more["generator"] = generators
    latents = [x]
    for t in timesteps:
        given = x if flow else made.scale_model_input(x, t)
        output = model(given, t / 1000 if flow else t)
        x = made.step(output, t, x, return_dict=False, **more)[0]
        latents.append(x)
    times = timesteps.to(torch.float32)
    sigmas = torch.zeros(0)
    if hasattr(made, "sigmas"):
        sigmas = made.sigmas[begin : begin + len(timesteps) + 1].to(torch.float32)
    made_of = {"start": torch.tensor([start]), "times": times / 1000 if flow else times, "sigmas": sigmas}
    made_of |= {"latents": torch.stack([latents[0], latents[-1]] if steps >= LONG else latents)}
    return {key: value.to(torch.float32).numpy().reshape(-1) for key, value in made_of.items()}


def timestep_sums() -> list[dict]:
    """Of whole timesteps, for many numbers of steps: the sum of each one times its place."""
    found = []
    for sampler in ("ddim", "ddpm", "pndm", "dpm++_2m", "deis", "unipc", "dpm++_2s", "lcm"):
        for spacing in ("linspace", "leading", "trailing")[: 1 if sampler in ("lcm", "dpm++_2s") else 3]:
            made = scheduler({"sampler": sampler, "config": own(sampler) | {"timestep_spacing": spacing}})
            sums = []
            for steps in range(1, 51 if sampler == "lcm" else 101):
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
    warnings.filterwarnings("ignore")  # torchsde's, about times that its own rounding puts outside of the interval
    diffusers.utils.logging.set_verbosity_error()
    with rounding_once():
        return record(arguments.check)


def record(check: bool) -> int:
    described, numbers, configs, seen, failed = [], [], [], set(), []
    for case in cases():
        # The text of a scheduler_config.json, since Python's infinities are no JSON.
        text = json.dumps(case["config"])
        key = json.dumps(case | {"config": text}, sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        try:
            made = run(case)
        except (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            failed.append(f"{error!r}: {case}")
            continue
        if not all(np.isfinite(value).all() for value in made.values()):
            failed.append(f"not finite: {case}")
            continue
        if text not in configs:
            configs.append(text)
        counts = {f"{key}_count": len(made[key]) for key in ("times", "sigmas")}
        described.append({"name": f"{case['sampler']} {len(described)}"} | case | {"config": configs.index(text)} | counts)
        numbers += [made[key] for key in ("start", "times", "sigmas", "latents")]
    if failed:
        raise SystemExit("\n".join(failed))
    body = {"made_by": "tests/reference/samplers.py", "seed": SEED, "tokens": TOKENS, "each": int(np.prod(SHAPE)), "long": LONG,
            "configs": [{"name": str(i), "text": text} for i, text in enumerate(configs)], "cases": described, "draws": DRAWS,
            "timesteps": timestep_sums()}
    tensors = {"numbers": np.concatenate(numbers), "draws": draws()}
    print(f"{len(described)} cases, {len(configs)} configurations, {len(tensors['numbers'])} numbers")
    if not check:
        goldenfile.write("samplers", body, tensors)
        return 0
    differences = goldenfile.compare("samplers", body, tensors)
    print("\n".join(differences) or "samplers: as committed")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
