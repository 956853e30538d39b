"""Records what diffusers' StableDiffusionSafetyChecker says of pictures: of given ones, and of those that a pipeline drew.

    python safety.py            writes safety
    python safety.py --check    compares with the committed files instead of writing them
    python safety.py --health   are the thresholds fit for it?

The model is that of stable_diffusion.py. The thresholds are stored: they are chosen so that of the given pictures one shows a concept,
one does so by the adjustment alone, one asks for special care and shows none, and one is a hair above a threshold, which rounding drops.
"""

import argparse
import json
import sys

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from transformers import CLIPConfig, CLIPImageProcessor

import generate
import given
import goldenfile
import recipes
import stable_diffusion
import synth
from image_prompts import VISION
from models import WEIGHTS_FILE

SIDE, PATCH = 58, 14
CONFIG = {
    "projection_dim": 96,
    "vision_config": {
        "hidden_size": 320,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 96,
    },
}
RULES = [(r"_care_embeds$|concept_embeds$", recipes.Around(1.0)), *VISION]
THRESHOLDS = ("concept_embeds_weights", "special_care_embeds_weights")
# Pictures by their sizes: none of the first five has the sides' ratio of another.
GIVEN = [(58, 58), (81, 58), (40, 97), (200, 131), (23, 19), (64, 64), (300, 61)]
REQUEST = {"prompt": "a large purple ring above a ##2 cross", "width": 40, "height": 56, "steps": 4, "seed": 5, "batch": 4, "cfg_scale": 1.0}
LEAST_MARGIN = 1e-4


def build() -> tuple[StableDiffusionSafetyChecker, list]:
    """The network, filled from the formula, and its tensors as a golden's header has them; thresholds are ones."""
    model, tensors = StableDiffusionSafetyChecker(CLIPConfig(**CONFIG)).float().eval(), []
    state = model.state_dict()
    for name in sorted(state):
        if name.endswith("position_ids") or name in THRESHOLDS:
            continue
        shape = list(state[name].shape)
        scale, offset = recipes.scale_offset(RULES, name, shape)
        state[name].copy_(torch.from_numpy(synth.values("safety_checker", name, shape, scale, offset)))
        tensors.append([name, shape, scale, offset])
    return model, tensors


def processor() -> CLIPImageProcessor:
    """CLIP's preprocessing, for a smaller picture."""
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def cosines(model: StableDiffusionSafetyChecker, pictures: list) -> tuple[np.ndarray, np.ndarray]:
    """How near each picture is to each concept, and to each that asks for special care."""
    concept, special = [], []
    for picture in pictures:
        pixels = processor()(picture, return_tensors="pt").pixel_values
        seen = model.visual_projection(model.vision_model(pixels)[1])
        concept.append(cosine_distance(seen, model.concept_embeds)[0].numpy())
        special.append(cosine_distance(seen, model.special_care_embeds)[0].numpy())
    return np.stack(concept), np.stack(special)


def judged(model: StableDiffusionSafetyChecker, picture) -> bool:
    """Whether diffusers flags a picture."""
    pixels = processor()(picture, return_tensors="pt").pixel_values
    return model(images=np.zeros((1, 8, 8, 3), np.float32), clip_input=pixels)[1][0]


def alone(column: np.ndarray, at: int) -> float:
    """By how much one picture is above all others."""
    return column[at] - np.delete(column, at).max()


def thresholds(concept: np.ndarray, special: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
    """Those of concepts and of special care for pictures that are so near to them, and which picture is what."""
    least, care, roles, taken = concept.max(axis=0) + 0.03, special.max(axis=0) + 0.03, {}, []

    def take(table: np.ndarray, role: str, pictures: range, other: int = -1) -> tuple[int, int]:
        """The picture and the column that stand apart most, of those that have no role yet."""
        used = roles.values()
        free = [(alone(table[:, c], p), p, c) for p in pictures for c in range(table.shape[1])
                if (id(table), c) not in taken and (p == other or (other < 0 and p not in used))]
        margin, picture, column = max(free)
        if not margin > 2e-3:
            raise SystemExit(f"{role}: a picture stands apart by {margin:.4f} alone")
        roles[role] = picture
        taken.append((id(table), column))
        return picture, column

    given_ones, drawn = range(len(GIVEN)), range(len(GIVEN), len(concept))
    picture, column = take(special, "special care, and a concept by the adjustment", given_ones)
    care[column] = special[picture, column] - alone(special[:, column], picture) / 2
    _, column = take(concept, "by the adjustment", given_ones, picture)
    least[column] = concept[picture, column] + 0.004
    picture, column = take(special, "special care alone", given_ones)
    care[column] = special[picture, column] - alone(special[:, column], picture) / 2
    for role, among in {"a concept": given_ones, "a drawn concept": drawn}.items():
        picture, column = take(concept, role, among)
        least[column] = concept[picture, column] - alone(concept[:, column], picture) / 2
    picture, column = take(concept, "a hair", given_ones)
    least[column] = concept[picture, column] - 0.0003
    return least, care, roles


def set_thresholds(model: StableDiffusionSafetyChecker, least: np.ndarray, care: np.ndarray) -> None:
    model.concept_embeds_weights.copy_(torch.from_numpy(np.float32(least)))
    model.special_care_embeds_weights.copy_(torch.from_numpy(np.float32(care)))


def margin(model: StableDiffusionSafetyChecker, concept: np.ndarray, special: np.ndarray) -> float:
    """How near any score comes to the half of a thousandth that decides, with and without the adjustment."""
    scores = np.concatenate([(concept - model.concept_embeds_weights.numpy()).ravel(), (special - model.special_care_embeds_weights.numpy()).ravel()])
    return min(np.abs(scores + adjustment - 5e-4).min() for adjustment in (0, 0.01))


class Seen(torch.nn.Module):
    """A tower that sees what it is given."""

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return vectors, vectors


def decided(model: StableDiffusionSafetyChecker) -> dict[str, np.ndarray]:
    """Vectors at random, thresholds that many of them pass, and which of them diffusers flags."""
    g = generate.generator(3)
    while True:
        vectors = torch.randn(64, CONFIG["projection_dim"], generator=g)
        concept, special = (cosine_distance(vectors, embeds).numpy() for embeds in (model.concept_embeds, model.special_care_embeds))
        least, care = np.quantile(concept, 0.965, axis=0), np.quantile(special, 0.7, axis=0)
        set_thresholds(model, least, care)
        if margin(model, concept, special) > 2e-6:
            break
    tower, projection = model.vision_model, model.visual_projection
    model.vision_model, model.visual_projection = Seen(), torch.nn.Identity()
    flagged = model(images=np.zeros((64, 8, 8, 3), np.float32), clip_input=vectors)[1]
    model.vision_model, model.visual_projection = tower, projection
    return {
        "vectors": vectors.numpy(), "vectors.concept": concept, "vectors.special": special, "vectors.flagged": np.array(flagged, np.uint8),
        "vectors.concept_weights": np.float32(least), "vectors.special_weights": np.float32(care),
    }


def pipeline(checker: StableDiffusionSafetyChecker | None) -> StableDiffusionPipeline:
    """diffusers' own, with or without the network."""
    pipes, _ = stable_diffusion.pipelines()
    parts = dict(pipes["text"].components)
    parts["scheduler"] = EulerDiscreteScheduler.from_config(stable_diffusion.SCHEDULER)
    parts |= {"safety_checker": checker, "feature_extractor": processor() if checker else None}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=checker is not None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(checker: StableDiffusionSafetyChecker | None) -> tuple[list, list[bool]]:
    """The pictures of the request, black where they are flagged, and whether they are."""
    pipe, images, flagged = pipeline(checker), [], []
    for i in range(REQUEST["batch"]):
        made = pipe(
            prompt=REQUEST["prompt"], width=REQUEST["width"], height=REQUEST["height"], num_inference_steps=REQUEST["steps"],
            guidance_scale=1.0, generator=generate.generator(REQUEST["seed"] + i),
        )
        images.append(made.images[0])
        flagged.append(bool(made.nsfw_content_detected[0]) if checker else False)
    return images, flagged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="check the thresholds instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, described = build()
    tensors = decided(model)
    pictures, (images, _) = [given.picture(*size) for size in GIVEN], draw(None)
    concept, special = cosines(model, pictures + images)
    least, care, roles = thresholds(concept, special)
    set_thresholds(model, least, care)
    flagged = [judged(model, picture) for picture in pictures]
    drawn, drawn_flagged = draw(model)
    if options.health:
        print(f"margin {margin(model, concept, special):.1e}, vectors {tensors['vectors.flagged'].sum()} of 64")
        print(roles, flagged, drawn_flagged)
        wanted = [picture in (roles["a concept"], roles["by the adjustment"]) for picture in range(len(GIVEN))]
        healthy = margin(model, concept, special) > LEAST_MARGIN and flagged == wanted and any(drawn_flagged) and not all(drawn_flagged)
        sys.exit(not healthy)
    count = len(GIVEN)
    tensors |= {"concept": concept[:count], "special": special[:count], "flagged": np.array(flagged, np.uint8)}
    tensors |= {"concept_embeds_weights": np.float32(least), "special_care_embeds_weights": np.float32(care)}
    tensors |= {"drawn.pictures": np.stack([np.asarray(picture) for picture in drawn]), "drawn.flagged": np.array(drawn_flagged, np.uint8)}
    config = CLIPConfig(**CONFIG).to_dict()
    config.pop("transformers_version", None)
    component = {
        "library": "stable_diffusion", "class": "StableDiffusionSafetyChecker", "file": WEIGHTS_FILE["transformers"],
        "config": json.loads(json.dumps(config)), "tensors": described,
    }
    body = {
        "made_by": "tests/reference/safety.py",
        "components": {"safety_checker": component},
        "feature_extractor": json.loads(processor().to_json_string()),
        "given": GIVEN,
        "request": REQUEST,
        "roles": roles,
    }
    problems = goldenfile.compare("safety", body, tensors) if options.check else goldenfile.write("safety", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
