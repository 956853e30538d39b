"""Records what diffusers draws with T2I-Adapters beside Stable Diffusion 1 and XL.

    python t2i_adapters.py            writes sd1_adapters and sdxl_adapters
    python t2i_adapters.py --check    compares with the committed files instead of writing them

The models are those of stable_diffusion.py and stable_diffusion_xl.py, the requests those of sd_controls.py. A picture of one channel is
gray before the pipeline sees it.
"""

import argparse
import sys
from dataclasses import asdict, replace

import diffusers
import numpy as np
import torch
from diffusers import MultiAdapter, T2IAdapter
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import cases
import generate
import given
import goldenfile
import models
import recipes
import stable_diffusion as sd
import stable_diffusion_xl as xl
from sd_controls import ALONE, BASES, SMALL, Case, Control, synthesise

RULES = [
    (r"\.bias$", recipes.Around(0.2)),
    (r"block2\.weight$", recipes.AFTER_ACTIVATION),
    (r"\.weight$", recipes.Gain(1.0)),
]


def adapter(kind: str, channels: list[int], factor: int, colours: int = 3, blocks: int = 2) -> cases.Component:
    """A T2I-Adapter."""
    config = {"adapter_type": kind, "channels": channels, "num_res_blocks": blocks, "downscale_factor": factor, "in_channels": colours}
    return cases.Component("diffusers", "T2IAdapter", config, RULES)


# A feature for each level. That for the second model has one more, for the middle; the light one's last fits nothing, and is left out.
NETS = {
    "sd1_adapters": {
        "full": adapter("full_adapter", [64, 96, 160], 8),
        "gray": adapter("full_adapter", [64, 96, 160], 8, colours=1),
        "light": adapter("light_adapter", [64, 96, 160], 8, blocks=4),
    },
    "sdxl_adapters": {"full": adapter("full_adapter_xl", [64, 128, 192, 192], 16)},
}
FULL = Control("full")
CASES = {
    "sd1_adapters": {
        "full": Case((replace(FULL, scale=0.7),)),
        "gray": Case((Control("gray"),), batch=2, **SMALL),
        "two": Case((replace(FULL, scale=0.6), Control("gray", scale=0.8, turned=True)), width=40, height=56),
        "without_cfg": Case((FULL,), width=72, height=88, **ALONE),
        "light": Case((Control("light"),), **SMALL),
    },
    "sdxl_adapters": {
        "full": Case((replace(FULL, scale=0.8),), width=112, height=80),
        "part": Case((replace(FULL, end=0.5),), steps=4, width=48, height=64),
    },
}

def draw(case: Case, base: dict, networks: dict, is_xl: bool, picture=None) -> np.ndarray:
    """The last latents [batch, C, h, w]. Every picture of a batch is a run with its own seed."""
    size = (case.width, case.height)
    picture, pictures = picture or given.picture(*size), []
    for control in case.controls:
        own = picture.transpose(0) if control.turned else picture
        pictures.append(own.convert("L") if networks[control.net].config.in_channels == 1 else own)
    several = len(case.controls) > 1
    adapter = MultiAdapter([networks[control.net] for control in case.controls]) if several else networks[case.controls[0].net]
    scales = [control.scale for control in case.controls]
    arguments = {"image": pictures if several else pictures[0], "adapter_conditioning_scale": scales if several else scales[0]}
    if is_xl:
        arguments["adapter_conditioning_factor"] = case.controls[0].end
    pipe = getattr(diffusers, f"StableDiffusion{'XL' if is_xl else ''}AdapterPipeline")(**base, adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    found, kept = [], base["scheduler"]
    for i in range(case.batch):
        pipe.scheduler, last = type(kept).from_config(kept.config), []
        taken = pipe.scheduler.step

        # These pipelines tell of no step, and the first returns pictures alone.
        def step(*given, taken=taken, last=last, **told):
            made = taken(*given, **told)
            last[:] = [made[0].clone()]
            return made

        pipe.scheduler.step = step
        pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=case.cfg_scale,
            generator=generate.generator((case.seed + i) % 2**64),
            output_type="latent",
            **arguments,
        )
        found.append(last[0][0].numpy())
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.DIFFUSERS["T2IAdapter"] = T2IAdapter
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    problems = []
    for golden, wanted in CASES.items():
        model, base = BASES[golden.replace("adapters", "controls")]
        tensors = {}
        with torch.no_grad():
            pipes, _ = base.pipelines()
            parts = {name: part for name, part in pipes["text"].components.items() if name not in ("image_encoder", "feature_extractor")}
            if base is sd:
                parts |= {"feature_extractor": None, "requires_safety_checker": False}
            networks, described = synthesise(NETS[golden])
            for name, case in wanted.items():
                latents = draw(case, parts, networks, base is xl)
                tensors[f"{name}.latents"] = latents
                other = draw(replace(case, batch=1), parts, networks, base is xl, picture=given.picture(case.width, case.height).transpose(1))
                print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture {goldenfile.nmse(other[0], latents[0]):.1e}", flush=True)
        described_cases = {name: asdict(case) for name, case in wanted.items()}
        body = {"made_by": "tests/reference/t2i_adapters.py", "model": model, "components": described, "cases": described_cases}
        problems += (goldenfile.compare(golden, body, tensors) if options.check else goldenfile.write(golden, body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
