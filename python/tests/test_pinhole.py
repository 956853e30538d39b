"""The wheel beside the command line. `scripts/wheel --test` runs it in a fresh environment; PINHOLE names the program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pinhole
from PIL import Image

PROGRAM = os.environ["PINHOLE"]
SIZE = {"width": 64, "height": 48, "steps": 2}


def drawn(folder: Path, *arguments: str) -> np.ndarray:
    """What the command line draws."""
    path = folder / "line.png"
    size = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    command = [PROGRAM, "generate", "-m", "mini", *size, *arguments, "-o", str(path), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return np.asarray(Image.open(path))


def test_pictures_are_those_of_the_command_line(folder: Path) -> None:
    session = pinhole.Model.mini().session()
    result = session.generate("a red heart", seed=7, **SIZE)
    expected = drawn(folder, "-p", "a red heart", "--seed", "7")
    assert np.array_equal(result.images[0], expected)
    assert np.array_equal(np.asarray(Image.open(result.save(folder / "saved.png"))), expected)
    assert result.latents.shape == (1, 16, 6, 8) and result.seed == 7
    # Pixels in, as an array, as a file and as its bytes.
    start = folder / "start.png"
    Image.fromarray(expected).save(start)
    changed = drawn(folder, "-p", "a blue heart", "--seed", "7", "--image", str(start), "--strength", "0.7")
    for image in (expected, start, start.read_bytes(), np.flip(expected[::-1], 0)):
        result = session.generate("a blue heart", seed=7, image=image, strength=0.7, **SIZE)
        assert np.array_equal(result.images[0], changed)


def test_several_devices_draw_what_one_draws(folder: Path) -> None:
    model, names = pinhole.Model.mini(), ["cpu:discrete", "cpu:discrete1"]
    asked = {"seed": 7, "cfg_scale": 2.0, "negative_prompt": "blue", **SIZE}
    one = model.session(device=names[0], threads=1).generate("a red heart", **asked)
    both = model.session(device=names, vram=["1G", "512M"], devices_by="passes", threads=2).generate("a red heart", **asked)
    assert np.array_equal(one.latents, both.latents) and np.array_equal(one.images[0], both.images[0])
    assert [held.device for held in both.devices] == names and len(one.devices) == 1
    assert [held.limit_bytes for held in both.devices] == [1 << 30, 512 << 20]
    assert all(0 < held.peak_bytes == held.planned_peak_bytes for held in both.devices)
    try:
        model.session(device=names, vram=["1G"])
        raise AssertionError("one size in a list for two devices")
    except ValueError as error:
        assert "2 devices" in str(error)
    try:
        model.session(device=["cpu:discrete", "cpu:discrete"])
        raise AssertionError("the same device twice")
    except pinhole.Error as error:
        assert "twice" in str(error)


def test_callbacks(folder: Path) -> None:
    session = pinhole.Model.mini().session(device="cpu:discrete", offload="sequential")
    seen, previews = [], []
    session.generate("a star", on_progress=seen.append, on_preview=lambda *given: previews.append(given), **SIZE)
    assert {"encode", "denoise", "decode"} <= {progress.phase for progress in seen}
    assert seen[-1].bytes_moved >= 0 and max(progress.steps for progress in seen) == 2
    assert [step for _, _, step, _ in previews] == [1, 2] and previews[0][0].dtype == np.uint8
    try:
        session.generate("a star", on_progress=lambda progress: progress.phase != "denoise", **SIZE)
        raise AssertionError("it went on")
    except pinhole.Cancelled as error:
        assert error.name == "PINHOLE_E_CANCELLED"
    try:
        session.generate("a star", on_progress=lambda _: 1 / 0, **SIZE)
        raise AssertionError("it went on")
    except ZeroDivisionError:
        pass
    assert len(session.generate("a star", batch=2, **SIZE).images) == 2


def test_refusals(folder: Path) -> None:
    model = pinhole.Model.mini()
    plan = model.session(device="cpu:discrete", vram="1G").plan(**SIZE)
    assert 0 < plan.peak_bytes <= plan.limit_bytes == 1 << 30
    for attempt, name, words in [
        (lambda: pinhole.Model.open(folder / "none.gguf"), "PINHOLE_E_IO", "none.gguf"),
        (lambda: model.session(device="cuda9"), "PINHOLE_E_DEVICE", "cuda9"),
        (lambda: model.session(device="cpu:discrete", vram="1M").generate("a star"), "PINHOLE_E_OVER_BUDGET", "--vram"),
        (lambda: model.session().generate("a star", width=20), "PINHOLE_E_OPTION", "width"),
    ]:
        try:
            attempt()
            raise AssertionError(f"{name}: it was accepted")
        except pinhole.Error as error:
            assert error.name == name and words in str(error), error
    for picture in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        try:
            model.session().generate("a star", image=picture)
            raise AssertionError("it was accepted")
        except ValueError as error:
            assert "uint8 pixels" in str(error)
    assert any(device.name == "cpu" for device in pinhole.devices())


def test_the_readme(folder: Path) -> None:
    """Its example runs as it stands, and draws what the command line draws."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", example], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    command = [PROGRAM, "generate", "-m", "mini", "-p", "a red heart", "--seed", "1", "-o", "expected.png", "--quiet"]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    pictures = [np.asarray(Image.open(folder / name)) for name in ("heart.png", "expected.png", "blue.png")]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


if __name__ == "__main__":
    import tempfile

    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory() as name_of_folder:
                test(Path(name_of_folder))
            print(f"{name}: passed")
