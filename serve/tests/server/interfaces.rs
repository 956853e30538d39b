//! OpenAI's interface, the web UI's, and the description of them.

use serde_json::{Value, json};

use crate::rig::{JSON, Served, pixels, quick, slow};

fn png(value: &Value) -> pinhole::image::Image {
    pixels(&base64::decode(value.as_str().unwrap()).unwrap())
}

/// A form with fields and files.
fn form(fields: &[(&str, &str)], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, text) in fields {
        body.extend(format!("--line\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n").bytes());
    }
    for (name, bytes) in files {
        let head =
            format!("--line\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}.png\"\r\n\r\n");
        body.extend(head.bytes().chain(bytes.iter().copied()).chain(*b"\r\n"));
    }
    body.extend(b"--line--\r\n");
    body
}

const FORM: &[(&str, &str)] = &[("content-type", "multipart/form-data; boundary=line")];

/// A picture of one colour, and one whose right half is transparent.
fn plain_and_half(side: u32) -> [Vec<u8>; 2] {
    let plain = image::RgbaImage::from_pixel(side, side, image::Rgba([200, 30, 30, 255]));
    let half = image::RgbaImage::from_fn(side, side, |x, _| image::Rgba([0, 0, 0, if x < side / 2 { 255 } else { 0 }]));
    [plain, half].map(|picture| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    })
}

#[test]
fn openai_draws_in_both_forms() {
    let served = Served::start(&[]);
    let body = json!({ "prompt": "a red heart", "size": "64x64", "steps": 2, "seed": 5, "n": 2, "model": "mini", "quality": "high" });
    let both = served.post("/v1/images/generations", &body).json();
    let data = both["data"].as_array().unwrap();
    assert_eq!((data.len(), both["size"].as_str()), (2, Some("64x64")), "{both}");
    for picture in data {
        let path = picture["url"].as_str().unwrap().strip_prefix(&format!("http://{}", served.address)).unwrap();
        assert_eq!(pixels(&served.get(path).body), png(&picture["b64_json"]));
    }
    for (form, other) in [("b64_json", "url"), ("url", "b64_json")] {
        let mut body = body.clone();
        body["response_format"] = json!(form);
        let picture = &served.post("/v1/images/generations", &body).json()["data"][0];
        assert!(picture[form].is_string() && picture[other].is_null());
    }
    for (member, value) in [
        ("model", json!("dall-e-9")),
        ("size", json!("big")),
        ("response_format", json!("x")),
        ("n", json!(0)),
        ("stream", json!(true)),
        ("output_format", json!("webp")),
    ] {
        let mut body = body.clone();
        body[member] = value;
        let refused = served.post("/v1/images/generations", &body);
        assert!([400, 404].contains(&refused.status) && refused.json()["error"]["message"].is_string(), "{member}");
    }
    let models = served.get("/v1/models").json();
    assert_eq!((models["object"].clone(), models["data"][0]["id"].clone()), (json!("list"), json!("mini")));
    assert_eq!(served.get("/v1/models/mini").json()["id"], "mini");
}

#[test]
fn openai_edits_what_is_transparent_and_leaves_the_rest() {
    let served = Served::start(&[]);
    let [plain, half] = plain_and_half(64);
    let fields = [("prompt", "a blue star"), ("steps", "4"), ("seed", "1"), ("response_format", "b64_json")];
    let answer = served.ask("POST", "/v1/images/edits", FORM, &form(&fields, &[("image", &plain), ("mask", &half)]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let edited = png(&answer.json()["data"][0]["b64_json"]);
    let before = pixels(&plain);
    let change = |from: usize, to: usize| {
        let (mut sum, mut count) = (0.0, 0);
        for y in 0..64 {
            for x in from..to {
                for channel in 0..3 {
                    let at = (y * 64 + x) * 3 + channel;
                    sum += f64::from(edited.rgb()[at].abs_diff(before.rgb()[at]));
                    count += 1;
                }
            }
        }
        sum / f64::from(count)
    };
    let (kept, painted) = (change(0, 24), change(40, 64));
    assert!(painted > 3.0 * kept, "kept {kept}, painted {painted}");
    // Without a mask the whole picture is changed; without a picture nothing is.
    assert_eq!(served.ask("POST", "/v1/images/edits", FORM, &form(&fields, &[("image", &plain)])).status, 200);
    for (fields, files) in [
        (&fields[..], &[][..]),
        (&fields, &[("image", &b"no picture"[..])]),
        (&[("prompt", "x"), ("n", "many")], &[("image", &plain)]),
        (&[("prompt", "x"), ("image_use", "hat")], &[("image", &plain)]),
    ] {
        let refused = served.ask("POST", "/v1/images/edits", FORM, &form(fields, files));
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    assert_eq!(served.ask("POST", "/v1/images/edits", FORM, b"--line\r\nbroken").status, 400);
}

#[test]
fn the_web_ui_draws_and_says_how() {
    let served = Served::start(&[]);
    let body = json!({ "prompt": "a red heart", "negative_prompt": null, "width": 64, "height": 64, "steps": 2, "seed": 5, "batch_size": 2,
        "sampler_name": "Euler", "scheduler": "Automatic", "styles": [], "n_iter": 1 });
    let answer = served.post("/sdapi/v1/txt2img", &body).json();
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!(
        (info["all_seeds"].clone(), info["width"].clone(), info["steps"].clone()),
        (json!([5, 6]), json!(64), json!(2))
    );
    assert_eq!(answer["images"].as_array().unwrap().len(), 2);
    // The picture of the native interface, and its text.
    let native = served.post("/v1/jobs?wait=true", &quick(5)).json();
    let native = pixels(&served.get(native["images"][0].as_str().unwrap()).body);
    assert_eq!(png(&answer["images"][0]), native);
    let read = served.post("/sdapi/v1/png-info", &json!({ "image": answer["images"][0] })).json();
    assert_eq!(read["info"], info["infotexts"][0]);
    assert_eq!(
        (read["parameters"]["Prompt"].clone(), read["parameters"]["Seed"].clone()),
        (json!("a red heart"), json!("5"))
    );
    let again = json!({ "init_images": [answer["images"][0]], "prompt": "a blue heart", "steps": 4, "denoising_strength": 0.5, "seed": 1, "width": 64, "height": 64 });
    let changed = served.post("/sdapi/v1/img2img", &again);
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_ne!(png(&changed.json()["images"][0]), native);
    assert_eq!(changed.json()["parameters"]["init_images"], Value::Null);
    // A mask of another size is fitted; an inverted one keeps what the other paints.
    let mask = base64::encode(plain_and_half(32)[1].clone());
    let mut masked = again.clone();
    (masked["mask"], masked["inpainting_mask_invert"]) = (json!(mask), json!(1));
    assert_eq!(served.post("/sdapi/v1/img2img", &masked).status, 200);
    let refused = served.post("/sdapi/v1/txt2img", &json!({ "prompt": "x <lora:../none:1>", "steps": 1 }));
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (404, Some("lora")));
    assert_eq!(served.post("/sdapi/v1/txt2img", &json!({ "enable_hr": true })).status, 400);
}

#[test]
fn the_web_ui_shows_progress_and_interrupts() {
    let served = Served::start(&[]);
    assert_eq!(served.get("/sdapi/v1/progress").json()["progress"], 0.0);
    let body = slow(1).to_string();
    let drawing = served.begin("POST", "/sdapi/v1/txt2img", JSON, body.as_bytes());
    served.until(|served| {
        let now = served.get("/sdapi/v1/progress").json();
        now["progress"].as_f64() > Some(0.0)
            && now["current_image"].is_string()
            && now["state"]["sampling_steps"] == 150
    });
    assert_eq!(served.post("/sdapi/v1/interrupt", &json!({})).status, 200);
    let answer = crate::rig::Answer::read(drawing);
    assert_eq!((answer.status, answer.json()["images"].clone()), (200, json!([])));
}

#[test]
fn the_web_ui_lists_what_there_is_and_changes_models() {
    let served = Served::start_with(&["-m", "one=mini", "-m", "two=mini"]);
    let titles = served.get("/sdapi/v1/sd-models").json();
    assert_eq!((titles[0]["title"].clone(), titles[1]["filename"].clone()), (json!("one"), json!("two")));
    assert!(served.get("/sdapi/v1/samplers").json().as_array().unwrap().iter().any(|it| it["name"] == "Euler a"));
    for path in ["schedulers", "loras", "upscalers", "embeddings", "cmd-flags", "memory", "sd-vae", "scripts"] {
        assert_eq!(served.get(&format!("/sdapi/v1/{path}")).status, 200, "{path}");
    }
    let model = || served.get("/sdapi/v1/options").json()["sd_model_checkpoint"].clone();
    assert_eq!(model(), "one");
    assert_eq!(
        served.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": "two [0123abcd]", "other": 1 })).status,
        200
    );
    assert_eq!(model(), "two");
    assert_eq!(served.post("/sdapi/v1/options", &json!({ "sd_model_checkpoint": "../three" })).status, 404);
    let body = json!({ "prompt": "a star", "width": 64, "height": 64, "steps": 1 });
    let info = |body: &Value| -> Value {
        serde_json::from_str(served.post("/sdapi/v1/txt2img", body).json()["info"].as_str().unwrap()).unwrap()
    };
    assert_eq!(info(&body)["sd_model_name"], "two");
    let mut other = body.clone();
    other["override_settings"] = json!({ "sd_model_checkpoint": "one" });
    assert_eq!(info(&other)["sd_model_name"], "one");
}

#[test]
fn the_description_has_every_address_that_there_is() {
    let served = Served::start(&[]);
    let described = served.get("/openapi.json").json();
    assert!(described["openapi"].as_str().unwrap().starts_with("3."));
    for (path, methods) in described["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let path = path.replace("{id}", "00000000-0000-0000-0000-000000000000").replace("{name}", "0.png");
            let answer = served.ask(&method.to_uppercase(), &path, JSON, b"");
            let is_there = answer.status != 405 && !answer.text().contains("no such address");
            assert!(is_there, "{method} {path}: {} {}", answer.status, answer.text());
        }
    }
    // Everything that is referred to is there.
    let text = described.to_string();
    for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(described["components"]["schemas"][name].is_object(), "{name}");
    }
    assert!(described["components"]["schemas"]["Drawing"]["properties"]["prompt"].is_object());
}

#[test]
fn the_page_is_whole_and_asks_nothing_of_others() {
    let served = Served::start(&[]);
    let page = served.get("/");
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    let text = page.text();
    for word in ["http://", "https://", "src=\"//", "@import", "url("] {
        let found: Vec<&str> =
            text.lines().filter(|line| line.contains(word) && !line.contains("www.w3.org/2000/svg")).collect();
        assert!(found.is_empty(), "{word}: {found:?}");
    }
    // Every input has its label.
    for id in text.split("<input id=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        let labelled = text.contains(&format!("<label for=\"{id}\"")) || id == "masked";
        assert!(labelled, "{id}");
    }
}
