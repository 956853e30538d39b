#!/usr/bin/env python3
"""The page at / in headless Chromium: a picture, an inpainting, a cancel, dark and light, without a mouse.

    serve/tests/page/run target/release/pinhole-serve [FOLDER]

starts a server and runs this file with its address. Screenshots go to FOLDER.
"""

import os
import re
import sys

from playwright.sync_api import expect, sync_playwright

PATIENCE = 120_000


def fill(page, **values):
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def done(page):
    expect(page.locator("#status")).to_have_text("Done.", timeout=PATIENCE)


def check(page, address, shots):
    loud = []
    page.on("console", lambda message: loud.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: loud.append(str(error)))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://{address}/")
    expect(page.locator("#model option")).to_have_count(1)

    # A picture, with previews and the plan, by the keyboard alone.
    fill(page, prompt="a small yellow star on a blue background", seed=1, steps=8, width=128, height=128)
    expect(page.locator("#plan-text")).to_contain_text("128x128, 8 steps", timeout=PATIENCE)
    expect(page.locator("#plan-picture svg")).to_have_attribute("aria-label", re.compile("transformer"))
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#preview")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=f"{shots}/serve-drawing.png")
    done(page)
    expect(page.locator("#gallery li")).to_have_count(1)
    expect(page.locator("#gallery figcaption").first).to_contain_text("Steps: 8")

    # Begin with it, paint a part of it anew.
    page.get_by_role("button", name="Begin with it").first.click()
    expect(page.locator("#given")).to_be_visible()
    page.get_by_label("Paint anew only where I draw").check()
    fill(page, prompt="a small red heart on a blue background", seed=2)
    page.locator("#strength").fill("1")
    page.locator("#brush").fill("64")
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + box["width"] * .3, box["y"] + box["height"] * .4)
    page.mouse.down()
    for step in range(9):
        page.mouse.move(box["x"] + box["width"] * (.3 + .05 * step), box["y"] + box["height"] * (.4 + .03 * (step % 3)))
    page.mouse.up()
    painted = page.evaluate("""() => {
        const mask = document.getElementById("mask");
        const bytes = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data;
        return bytes.filter((byte, at) => at % 4 == 3 && byte > 128).length / (mask.width * mask.height);
    }""")
    assert 0.1 < painted < 0.9, f"{painted} of the mask is painted"
    page.screenshot(path=f"{shots}/serve-mask.png")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#gallery li")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#gallery figcaption").first).to_contain_text("a small red heart")

    # Cancel.
    page.get_by_role("button", name="Remove the picture").click()
    fill(page, steps=150)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#status")).to_contain_text("step", timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.", timeout=PATIENCE)
    expect(page.locator("#gallery li")).to_have_count(2)

    # What does not fit says so with numbers, before it is sent.
    fill(page, steps=4, width=2048, height=2048)
    expect(page.locator("#plan-text")).to_contain_text("may have 64.0 MiB", timeout=PATIENCE)

    # The gallery is there after a reload; in the dark.
    page.emulate_media(color_scheme="dark")
    page.reload()
    expect(page.locator("#gallery li")).to_have_count(2)
    expect(page.locator("#plan-picture svg")).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(500)
    page.screenshot(path=f"{shots}/serve-dark.png")
    page.set_viewport_size({"width": 380, "height": 800})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 380, f"{wide} pixels are wider than a telephone"

    # Everything that can be used has a name.
    for control in page.locator("input, select, textarea, button").all():
        if control.is_visible():
            name = control.evaluate("c => (c.labels && c.labels.length) || c.textContent.trim() || c.ariaLabel")
            assert name, control.evaluate("c => c.outerHTML")
    strangers = [url for url in asked if not url.startswith((f"http://{address}/", "data:", "blob:"))]
    assert not strangers, strangers
    # A refusal is an answer that browsers write down.
    loud = [text for text in loud if "400 (Bad Request)" not in text and "422" not in text]
    assert not loud, loud


if __name__ == "__main__":
    with sync_playwright() as player:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        check(browser.new_page(viewport={"width": 1200, "height": 900}), *sys.argv[1:3])
        browser.close()
    print("the page: a picture, an inpainting, a cancel, a refusal, dark, narrow, labels")
