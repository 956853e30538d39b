"""Checks that the synthetic models are fit to be goldens: nothing in them is dead, saturated or beside the point."""

import math
from pathlib import Path

import torch

import autoencoder
import cases
import generate
import models
from goldenfile import nmse
from tracing import attention_trace

# The root mean square of every layer's output.
RMS_RANGE = (0.02, 30.0)
# Entropy of attention over that of uniform attention, averaged over queries: 1 is uniform, 0 looks at one token.
ENTROPY_RANGE = (0.3, 0.97)
# How far, in NMSE, the output must move when the numbers of one weight move by 10%. One that is missing, or that another
# stands for, then shows a hundred times as much, beyond every tolerance.
LEAST_EFFECT = 1e-7
# A key's bias adds the same to all logits of a query, which softmax ignores. Behind a norm (FLUX) it does count.
WITHOUT_EFFECT = ("self_attn.k_proj.bias", "attentions.0.to_k.bias")
# How far, in NMSE, an input of the transformer must move its output when it changes.
LEAST_INPUT_EFFECT = 1e-3
# How far, in NMSE, the last bits of all weights may move an output.
ROUNDING = 1e-10


def rms(value: torch.Tensor) -> float:
    """Root mean square."""
    return value.double().square().mean().sqrt().item()


def runs(pipe, networks, case) -> dict:
    """For each component: a function that runs it on small inputs and returns its results as one flat tensor."""
    found = {}
    vae = networks["vae"]
    latents = torch.randn(1, vae.config.latent_channels, 6, 10, generator=generate.generator(1)) / vae.config.scaling_factor
    image = autoencoder.test_picture(48, 32)
    found["vae"] = lambda: torch.cat([vae.decode(latents).sample.flatten(), vae.encode(image).latent_dist.parameters.flatten()])
    if pipe:
        ids = generate.token_ids(pipe, case.request.prompt, case.request.max_sequence_length)
        text = generate.encode(pipe, ids)
        start = torch.randn(1, 16, 14, 10, generator=generate.generator(1))
        found["text_encoder"] = lambda: pipe.text_encoder(torch.tensor([ids["clip"]])).pooler_output
        found["text_encoder_2"] = lambda: pipe.text_encoder_2(torch.tensor([ids["t5"]])).last_hidden_state
        found["transformer"] = lambda: generate.velocity(
            pipe, generate.pack(pipe, start), torch.tensor(case.forward_sigma), text, 3.5, generate.image_ids(pipe, start)
        )
    return found


def check_ranges(key: str, network, run) -> list[str]:
    """The outputs of all layers, and what their attentions look at."""
    sizes, handles = {}, []
    for name, module in network.named_modules():
        if list(module.parameters(recurse=False)):
            hook = lambda _m, _i, output, name=name: sizes.update({name: rms(output[0] if isinstance(output, tuple) else output)})
            handles.append(module.register_forward_hook(hook))
    with attention_trace() as attentions:
        output = run()
    for handle in handles:
        handle.remove()
    problems = [f"{key}.{n}: rms {s:.3g}" for n, s in sizes.items() if not RMS_RANGE[0] < s < RMS_RANGE[1]]
    low, high = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    print(f"{key}: output rms {rms(output):.2f}; layers from {sizes[low]:.2f} ({low}) to {sizes[high]:.2f} ({high})")
    for i, (logits, p) in enumerate(attentions):
        entropy, largest, spread = attention_figures(logits, p)
        print(f"{key}: attention {i}: logits std {spread:.2f}, entropy {entropy:.2f} of uniform, largest {largest:.2f}")
        if not ENTROPY_RANGE[0] < entropy < ENTROPY_RANGE[1]:
            problems.append(f"{key}: attention {i} has entropy {entropy:.2f} of uniform")
    return problems


def attention_figures(logits: torch.Tensor, p: torch.Tensor) -> tuple[float, float, float]:
    """Entropy as a share of uniform attention's, the largest probability, the spread of logits: means over queries."""
    seen = torch.isfinite(logits).sum(-1)
    several = seen > 1  # the first token of a causal model has no choice
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1) / seen.clamp_min(2).log()
    spread = torch.tensor([rms(row[row.isfinite()] - row[row.isfinite()].mean()) for row in logits.flatten(0, -2)[::7]])
    return entropy[several].mean().item(), p.amax(-1)[several].mean().item(), spread.mean().item()


def check_weights(key: str, network, run) -> list[str]:
    """Every weight has an effect on the output."""
    reference, problems, effects = run(), [], {}
    g = generate.generator(0)
    for name, weight in network.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effect = nmse(run().numpy(), reference.numpy())
        weight.copy_(kept)
        if name.endswith(WITHOUT_EFFECT):
            if effect > LEAST_EFFECT:
                problems.append(f"{key}.{name} was thought to have no effect, and has one of {effect:.1e}")
            continue
        effects[name] = effect
        if not effect > LEAST_EFFECT:
            problems.append(f"{key}.{name} has an effect of {effect:.1e} only")
    least, most = min(effects, key=effects.get), max(effects, key=effects.get)
    median = sorted(effects.values())[len(effects) // 2]
    print(f"{key}: effect of 10% of a weight: least {effects[least]:.1e} ({least}), median {median:.1e}, most {effects[most]:.1e} ({most})")
    return problems


def check_inputs(pipe, case) -> list[str]:
    """Every input of the transformer has an effect on its output."""
    ids = generate.token_ids(pipe, case.request.prompt, case.request.max_sequence_length)
    text = generate.encode(pipe, ids)
    other = generate.encode(pipe, generate.token_ids(pipe, "a red heart", case.request.max_sequence_length))
    latents = torch.randn(1, 16, 14, 10, generator=generate.generator(1))
    usual = (generate.pack(pipe, latents), torch.tensor(case.forward_sigma), text, 3.5, generate.image_ids(pipe, latents))
    changes = {
        "timestep": usual[:1] + (torch.tensor(case.forward_sigma + 0.1),) + usual[2:],
        "pooled text": usual[:2] + (text | {"clip.pooled": other["clip.pooled"]},) + usual[3:],
        "text": usual[:2] + (text | {"t5.last_hidden_state": other["t5.last_hidden_state"]},) + usual[3:],
        "rotary rows": usual[:4] + (usual[4] * torch.tensor([1.0, 0.0, 1.0]),),
        "rotary columns": usual[:4] + (usual[4] * torch.tensor([1.0, 1.0, 0.0]),),
    }
    if pipe.transformer.config.guidance_embeds:
        changes["guidance"] = usual[:3] + (2.5,) + usual[4:]
    reference = generate.velocity(pipe, *usual).numpy()
    effects = {what: nmse(generate.velocity(pipe, *changed).numpy(), reference) for what, changed in changes.items()}
    print("transformer: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
    return [f"transformer: {what} has an effect of {e:.1e} only" for what, e in effects.items() if not e > LEAST_INPUT_EFFECT]


def check_rounding(key: str, network, run) -> list[str]:
    """float32 is good enough: the last bit of every weight, moved up or down, would not show."""
    g, reference = generate.generator(3), run()
    kept = {name: weight.clone() for name, weight in network.named_parameters()}
    for weight in network.parameters():
        weight.mul_(1 + torch.randn(weight.shape, generator=g).sign() * 2**-23)
    error = nmse(run().numpy(), reference.numpy())
    for name, weight in network.named_parameters():
        weight.copy_(kept[name])
    print(f"{key}: the last bit of all weights moves the output by nmse {error:.1e}")
    return [f"{key}: rounding moves the output by nmse {error:.1e}"] if not error < ROUNDING else []


def check_picture(pipe, case) -> list[str]:
    """Latents and picture of the whole request."""
    _, tensors, _ = generate.run(pipe, case.request)
    decoded = tensors["decoded"]
    clipped = (decoded.abs() > 1).float().mean().item()
    steps = [rms(tensors[f"latents.{i}"]) for i in range(case.request.steps)]
    print(f"latents by step: rms {', '.join(f'{s:.2f}' for s in steps)}; picture: std {decoded.std():.2f}, {clipped:.0%} clipped")
    wrong = clipped > 0.1 or not 0.1 < decoded.std() < 1 or not all(0.5 < s < 4 for s in steps) or not math.isfinite(sum(steps))
    return ["latents or picture out of range"] if wrong else []


def check(name: str, tokenizers: Path) -> list[str]:
    """All of it for one case: prints what it finds, returns what is wrong."""
    print(f"== {name}")
    case = cases.CASES[name]
    networks, _ = models.synthesise(case)
    pipe = models.pipeline(networks, models.scheduler(case.scheduler)[0], tokenizers) if case.request else None
    problems = []
    for key, run in runs(pipe, networks, case).items():
        problems += check_ranges(key, networks[key], run)
        problems += check_weights(key, networks[key], run)
        problems += check_rounding(key, networks[key], run)
    if pipe:
        problems += check_inputs(pipe, case) + check_picture(pipe, case)
    return [f"{name}: {problem}" for problem in problems]
