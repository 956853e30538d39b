"""One request through FluxPipeline, and the same by hand, component by component; both must agree."""

import numpy as np
import torch

from cases import Request
from goldenfile import nmse
from models import describe_float
from tracing import transformer_trace


def generator(seed: int) -> torch.Generator:
    """PyTorch's CPU generator."""
    return torch.Generator("cpu").manual_seed(seed)


def token_ids(pipe, prompt: str, max_sequence_length: int) -> dict[str, list[int]]:
    """The ids of both encoders, padded and truncated as the pipeline does it."""
    options = {"padding": "max_length", "truncation": True}
    clip = pipe.tokenizer(prompt, max_length=pipe.tokenizer.model_max_length, **options).input_ids
    t5 = pipe.tokenizer_2(prompt, max_length=max_sequence_length, **options).input_ids
    return {"clip": clip, "t5": t5}


def encode(pipe, ids: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Both text encoders' results, without the batch."""
    clip = pipe.text_encoder(torch.tensor([ids["clip"]]))
    t5 = pipe.text_encoder_2(torch.tensor([ids["t5"]]))
    return {
        "clip.last_hidden_state": clip.last_hidden_state[0],
        "clip.pooled": clip.pooler_output[0],
        "t5.last_hidden_state": t5.last_hidden_state[0],
    }


def image_ids(pipe, latents: torch.Tensor) -> torch.Tensor:
    """Rotary positions of the image tokens of latents [1, C, h, w]."""
    return pipe._prepare_latent_image_ids(1, latents.shape[2] // 2, latents.shape[3] // 2, "cpu", torch.float32)


def velocity(pipe, tokens: torch.Tensor, sigma: torch.Tensor, text: dict, guidance: float, ids: torch.Tensor) -> torch.Tensor:
    """One forward of the transformer over packed latents [1, tokens, channels]."""
    return pipe.transformer(
        hidden_states=tokens,
        timestep=sigma.reshape(1),
        guidance=torch.full([1], guidance) if pipe.transformer.config.guidance_embeds else None,
        pooled_projections=text["clip.pooled"][None],
        encoder_hidden_states=text["t5.last_hidden_state"][None],
        txt_ids=torch.zeros(text["t5.last_hidden_state"].shape[0], 3),
        img_ids=ids,
        return_dict=False,
    )[0]


def noise(pipe, request: Request) -> torch.Tensor:
    """The latents that a request starts from: [1, C, h, w]."""
    h, w = request.height // pipe.vae_scale_factor, request.width // pipe.vae_scale_factor
    return torch.randn(1, pipe.transformer.config.in_channels // 4, h, w, generator=generator(request.seed))


def pack(pipe, latents: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] to [1, tokens, 4 C]."""
    return pipe._pack_latents(latents, *latents.shape)


def denoise_by_hand(pipe, request: Request, start: torch.Tensor, text: dict, negative: dict | None) -> list[torch.Tensor]:
    """Packed latents after every step of Euler's rule over the scheduler's sigmas (which the pipeline has just set)."""
    tokens, ids, found = pack(pipe, start), image_ids(pipe, start), []
    for sigma, after in zip(pipe.scheduler.sigmas, pipe.scheduler.sigmas[1:]):
        model_time = sigma * 1000 / 1000  # the way it takes through the pipeline
        v = velocity(pipe, tokens, model_time, text, request.guidance_scale, ids)
        if negative:
            without = velocity(pipe, tokens, model_time, negative, request.guidance_scale, ids)
            v = without + request.true_cfg_scale * (v - without)
        tokens = tokens + (after - sigma) * v
        found.append(tokens)
    return found


def decode(pipe, latents: torch.Tensor) -> torch.Tensor:
    """The picture [3, H, W] of latents [1, C, h, w] in the denoiser's space, before clamping to -1..1."""
    config = pipe.vae.config
    return pipe.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0), return_dict=False)[0][0]


def picture(decoded: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] as diffusers' image processor rounds it."""
    unit = (decoded * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    return (unit * 255).round().astype(np.uint8)


def call_pipeline(pipe, request: Request) -> tuple[list[torch.Tensor], np.ndarray]:
    """FluxPipeline itself: packed latents after every step, and the picture as uint8 [H, W, 3]."""
    steps = []

    def keep(_pipe, _step, _timestep, tensors):
        steps.append(tensors["latents"].clone())
        return {}

    made = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        true_cfg_scale=request.true_cfg_scale,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=generator(request.seed),
        max_sequence_length=request.max_sequence_length,
        callback_on_step_end=keep,
    )
    return steps, np.asarray(made.images[0])


def agree(what: str, by_hand: torch.Tensor, by_pipeline: torch.Tensor) -> None:
    """Stops where the two ways to the same result differ by more than rounding."""
    error = nmse(by_hand.numpy(), by_pipeline.numpy())
    if not error < 1e-12:
        raise SystemExit(f"{what}: by hand and by FluxPipeline differ by nmse {error:.1e}")


def run(pipe, request: Request) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A request both ways: the header's `generate` entry, the tensors to record, and the encoded prompt."""
    ids = token_ids(pipe, request.prompt, request.max_sequence_length)
    text, negative = encode(pipe, ids), None
    described = vars(request) | {"token_ids": ids}
    tensors = dict(text)
    if request.negative_prompt is not None and request.true_cfg_scale > 1:
        described["negative_token_ids"] = token_ids(pipe, request.negative_prompt, request.max_sequence_length)
        negative = encode(pipe, described["negative_token_ids"])
        tensors |= {f"negative.{name}": value for name, value in negative.items()}
    start = noise(pipe, request)
    steps, image = call_pipeline(pipe, request)
    for i, (mine, theirs) in enumerate(zip(denoise_by_hand(pipe, request, start, text, negative), steps, strict=True)):
        agree(f"latents after step {i}", mine, theirs)
    described["sigmas"] = describe_float(pipe.scheduler.sigmas)
    tensors["noise"] = start
    for i, packed in enumerate(steps):
        tensors[f"latents.{i}"] = pipe._unpack_latents(packed, request.height, request.width, pipe.vae_scale_factor)
    tensors["decoded"] = decode(pipe, tensors[f"latents.{len(steps) - 1}"])
    tensors["picture"] = torch.from_numpy(image.copy())
    if not np.array_equal(picture(tensors["decoded"]), image):
        raise SystemExit("the picture by hand is not FluxPipeline's")
    return described, tensors, text


def forward(pipe, latents: torch.Tensor, sigma: float, guidance: float, text: dict) -> dict[str, torch.Tensor]:
    """One transformer forward with its inputs, intermediate results and output, names beginning with `forward.`"""
    tokens, time = pack(pipe, latents), torch.tensor([sigma])
    with transformer_trace(pipe.transformer) as found:
        output = velocity(pipe, tokens, time, text, guidance, image_ids(pipe, latents))
    inputs = {"img": tokens[0], "txt": text["t5.last_hidden_state"], "pooled": text["clip.pooled"], "timestep": time}
    if pipe.transformer.config.guidance_embeds:
        inputs["guidance"] = torch.tensor([guidance])
    return {f"forward.{name}": value for name, value in (inputs | found | {"output": output[0]}).items()}
