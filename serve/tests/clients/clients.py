#!/usr/bin/env python3
"""Real clients against a server, unchanged: the packages `openai` and `webuiapi` of PyPI.

    serve/tests/clients/run target/release/pinhole-serve

makes a virtual environment with both, starts the server, and runs this file with the server's address.
"""

import base64
import io
import sys
import threading
import urllib.request

import webuiapi
from openai import APIStatusError, OpenAI
from PIL import Image, ImageDraw


def png(picture):
    held = io.BytesIO()
    picture.save(held, "PNG")
    held.seek(0)
    return held


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def check_openai(address):
    client = OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").id == "mini"

    made = client.images.generate(model="mini", prompt="a small yellow star", size="64x64", n=2,
                                  response_format="b64_json", extra_body={"steps": 4, "seed": 1})
    pictures = [opened(data.b64_json) for data in made.data]
    assert [picture.size for picture in pictures] == [(64, 64)] * 2 and pictures[0].tobytes() != pictures[1].tobytes()

    made = client.images.generate(prompt="a small yellow star", size="64x64", response_format="url",
                                  extra_body={"steps": 4, "seed": 1})
    with urllib.request.urlopen(made.data[0].url) as answer:
        assert Image.open(io.BytesIO(answer.read())).convert("RGB").tobytes() == pictures[0].tobytes()

    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=(0, 0, 0, 0))
    edited = client.images.edit(image=("star.png", png(pictures[0]), "image/png"),
                                mask=("mask.png", png(mask), "image/png"), prompt="a blue heart",
                                extra_body={"steps": 4, "seed": 1, "response_format": "b64_json"})
    edited = opened(edited.data[0].b64_json)
    left = (0, 0, 24, 64)
    change = sum(abs(a - b) for a, b in zip(edited.crop(left).tobytes(), pictures[0].crop(left).tobytes()))
    assert edited.size == (64, 64) and change / (24 * 64 * 3) < 12, change

    for wrong in ({"model": "dall-e-9"}, {"size": "65x64"}, {"n": 100}):
        try:
            client.images.generate(**{"prompt": "x", "size": "64x64", **wrong})
        except APIStatusError as error:
            assert error.status_code in (400, 404) and error.body["message"], error
        else:
            raise AssertionError(f"{wrong} was taken")


def check_webui(address):
    host, port = address.split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler", steps=4)
    made = api.txt2img(prompt="a red heart", width=64, height=64, seed=3, cfg_scale=1)
    assert made.image.size == (64, 64) and made.info["all_seeds"] == [3], made.info
    assert "Steps: 4" in made.info["infotexts"][0]
    changed = api.img2img(images=[made.image], prompt="a blue heart", width=64, height=64, seed=4, cfg_scale=1,
                          denoising_strength=0.6)
    assert changed.image.size == (64, 64) and changed.image.tobytes() != made.image.tobytes()
    assert [model["model_name"] for model in api.get_sd_models()] == ["mini"]
    assert any(sampler["name"] == "Euler a" for sampler in api.get_samplers())
    assert api.get_loras() == [] and api.get_options()["sd_model_checkpoint"] == "mini"
    api.set_options({"sd_model_checkpoint": "mini"})

    answers = []
    long = threading.Thread(target=lambda: answers.append(
        api.session.post(f"http://{address}/sdapi/v1/txt2img",
                         json={"prompt": "a star", "width": 128, "height": 128, "steps": 150}).json()))
    long.start()
    while api.get_progress()["progress"] == 0:
        pass
    api.interrupt()
    long.join()
    assert answers[0]["images"] == [], "it was not interrupted"


if __name__ == "__main__":
    check_openai(sys.argv[1])
    print("openai: generate, edit, models, errors")
    check_webui(sys.argv[1])
    print("webuiapi: txt2img, img2img, png-info, lists, options, progress, interrupt")
