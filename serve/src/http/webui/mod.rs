//! AUTOMATIC1111's web UI, as programs speak to it: `/sdapi/v1` (<https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API>), as
//! far as one picture model has it. Options that have no counterpart here are taken and have no effect.

mod lists;
mod parameters;
mod progress;
mod settings;

use axum::Router;
use axum::extract::{Extension, State};
use axum::routing::{get, post};
use pinhole::image::Filter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{App, Json};
use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::job::{Job, Snapshot};
use crate::keys::Caller;
use crate::limits::few;
use crate::pictures;
use crate::server::Server;
use settings::Settings;

/// Previews come after so many steps.
const PREVIEW: usize = 5;

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/txt2img", post(txt2img))
        .route("/img2img", post(img2img))
        .route("/png-info", post(png_info))
        .route("/progress", get(progress::progress))
        .route("/interrupt", post(progress::interrupt))
        .route("/skip", post(progress::interrupt))
        .route("/options", get(settings::options).post(settings::set_options))
        .route("/cmd-flags", get(settings::flags))
        .route("/samplers", get(lists::samplers))
        .route("/schedulers", get(lists::schedulers))
        .route("/sd-models", get(lists::models))
        .route("/loras", get(lists::loras))
        .route("/memory", get(lists::memory))
        .route("/upscalers", get(lists::none))
        .route("/latent-upscale-modes", get(lists::none))
        .route("/hypernetworks", get(lists::none))
        .route("/face-restorers", get(lists::none))
        .route("/realesrgan-models", get(lists::none))
        .route("/prompt-styles", get(lists::none))
        .route("/sd-vae", get(lists::none))
        .route("/scripts", get(lists::scripts))
        .route("/embeddings", get(lists::embeddings))
        // What was given at the start is all there is: there is nothing to look for again.
        .route("/refresh-checkpoints", post(lists::refresh))
        .route("/refresh-loras", post(lists::refresh))
}

/// A request of either kind. Clients send null for what they do not say. Other members are not kept: a list of a million numbers has no
/// effect here, and takes no memory.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Asked {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    width: Option<usize>,
    height: Option<usize>,
    steps: Option<usize>,
    /// Below zero it is random.
    seed: Option<i64>,
    batch_size: Option<usize>,
    n_iter: Option<usize>,
    cfg_scale: Option<f32>,
    /// Of Forge: guidance as an input of the model.
    distilled_cfg_scale: Option<f32>,
    sampler_name: Option<String>,
    /// The older name of the same.
    sampler_index: Option<String>,
    scheduler: Option<String>,
    eta: Option<f32>,
    denoising_strength: Option<f32>,
    enable_hr: Option<bool>,
    send_images: Option<bool>,
    override_settings: Option<Settings>,
    #[serde(deserialize_with = "few", skip_serializing)]
    init_images: Vec<String>,
    mask: Option<String>,
    inpainting_mask_invert: Option<i64>,
}

/// Pictures, what was asked, and how they were made: JSON within JSON.
#[derive(Serialize)]
struct Answer {
    images: Vec<String>,
    parameters: Asked,
    info: String,
}

async fn txt2img(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Json(asked): Json<Asked>,
) -> Result<axum::Json<Answer>, Fault> {
    let drawing = asked.drawing(&server, &caller)?;
    draw(&server, &caller, drawing, asked).await
}

async fn img2img(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Json(mut asked): Json<Asked>,
) -> Result<axum::Json<Answer>, Fault> {
    let mut drawing = asked.drawing(&server, &caller)?;
    let [given] = <[String; 1]>::try_from(std::mem::take(&mut asked.init_images)).map_err(|images| {
        Fault::invalid("init_images", format!("init_images: expected one picture, found {}", images.len()))
    })?;
    drawing.strength = asked.denoising_strength;
    let mask = asked.mask.take();
    let inverted = asked.inpainting_mask_invert.is_some_and(|invert| invert != 0);
    let looking = server.clone();
    let fitted = tokio::task::spawn_blocking(move || fit_mask(&looking, given, mask, inverted)).await;
    let (image, mask) = fitted.map_err(|_| Fault::internal("the server met a bug while it looked at a picture"))??;
    (drawing.image, drawing.mask) = (Some(image), mask);
    draw(&server, &caller, drawing, asked).await
}

/// The mask in the size of its picture, which the web UI gives it, too.
fn fit_mask(
    server: &Server,
    image: String,
    mask: Option<String>,
    inverted: bool,
) -> Result<(String, Option<String>), Fault> {
    let Some(mask) = mask else { return Ok((image, None)) };
    let picture = pictures::read("init_images", &image, &server.limits)?;
    let mask = pictures::read("mask", &mask, &server.limits)?;
    let mut mask = mask.image().resized(picture.image().width(), picture.image().height(), Filter::Nearest)?;
    if inverted {
        let rgb = mask.rgb().iter().map(|byte| !byte).collect();
        mask = pinhole::image::Image::new(mask.width(), mask.height(), rgb).unwrap_or(mask);
    }
    Ok((image, pictures::preview(&mask).map(base64::encode)))
}

impl Asked {
    /// In the native interface's words.
    fn drawing(&self, server: &Server, caller: &Caller) -> Result<Drawing, Fault> {
        if self.enable_hr == Some(true) {
            return Err(Fault::invalid("enable_hr", "enable_hr: a second pass is not there for this interface"));
        }
        let (prompt, loras) = parameters::without_loras(self.prompt.as_deref().unwrap_or_default());
        let (negative_prompt, _) = parameters::without_loras(self.negative_prompt.as_deref().unwrap_or_default());
        let model = match self.override_settings.as_ref().and_then(Settings::model) {
            Some(name) => Some(name.to_owned()),
            None => server.chosen_model(&caller.owner),
        };
        let is_said = |name: &&String| !name.is_empty() && !name.eq_ignore_ascii_case("automatic");
        let sampler = self.sampler_name.as_ref().or(self.sampler_index.as_ref()).filter(is_said);
        let batch = self.batch_size.unwrap_or(1).saturating_mul(self.n_iter.unwrap_or(1));
        Ok(Drawing {
            model,
            prompt,
            negative_prompt: Some(negative_prompt).filter(|text| !text.is_empty()),
            width: self.width,
            height: self.height,
            steps: self.steps,
            seed: self.seed.and_then(|seed| u64::try_from(seed).ok()),
            batch: Some(batch),
            guidance: self.distilled_cfg_scale,
            cfg_scale: self.cfg_scale,
            sampler: sampler.cloned(),
            schedule: self.scheduler.as_ref().filter(is_said).cloned(),
            eta: self.eta.filter(|eta| *eta > 0.0),
            loras,
            preview: Some(PREVIEW),
            ..Drawing::default()
        })
    }
}

/// Draws, waits, and answers with what was asked, except for its pictures. Who leaves stops the job. An interrupted one answers without
/// pictures, as the web UI does.
async fn draw(server: &App, caller: &Caller, drawing: Drawing, asked: Asked) -> Result<axum::Json<Answer>, Fault> {
    let parameters = Asked { mask: None, ..asked };
    let leash = server.accept(caller, drawing).await?.leash();
    let (job, snapshot) = match leash.wait().await {
        Ok(ended) => ended,
        Err(fault) if fault.kind == "cancelled" => {
            let info = json!({ "interrupted": true, "all_seeds": [], "infotexts": [] }).to_string();
            return Ok(axum::Json(Answer { images: Vec::new(), parameters, info }));
        }
        Err(fault) => return Err(fault),
    };
    let pictures = match parameters.send_images {
        Some(false) => Vec::new(),
        _ => server.jobs.pictures(&job, &snapshot).await?,
    };
    let images = pictures.iter().map(base64::encode).collect();
    Ok(axum::Json(Answer { images, parameters, info: info(&job, &snapshot).to_string() }))
}

/// How pictures were made.
fn info(job: &Job, snapshot: &Snapshot) -> Value {
    let outcome = snapshot.outcome.as_deref().cloned().unwrap_or_default();
    let drawing = &job.drawing;
    let negative = drawing.negative_prompt.as_deref().unwrap_or_default();
    let count = outcome.seeds.len();
    json!({
        "prompt": drawing.prompt,
        "all_prompts": vec![drawing.prompt.as_str(); count],
        "negative_prompt": negative,
        "all_negative_prompts": vec![negative; count],
        "seed": outcome.seeds.first(),
        "all_seeds": outcome.seeds,
        "subseed": outcome.seeds.first(),
        "all_subseeds": outcome.seeds,
        "subseed_strength": 0,
        "width": outcome.size[0],
        "height": outcome.size[1],
        "sampler_name": drawing.sampler,
        "cfg_scale": drawing.cfg_scale,
        "steps": outcome.steps,
        "batch_size": count,
        "denoising_strength": drawing.strength,
        "sd_model_name": drawing.model,
        "sd_model_hash": null,
        "index_of_first_image": 0,
        "infotexts": outcome.parameters,
        "styles": [],
        "job_timestamp": progress::timestamp(job.created),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": false,
        "extra_generation_params": {},
    })
}

#[derive(Deserialize)]
struct PngInfo {
    image: String,
}

async fn png_info(Json(PngInfo { image }): Json<PngInfo>) -> Result<axum::Json<Value>, Fault> {
    let payload = image.split_once(";base64,").map_or(image.as_str(), |(_, payload)| payload);
    let bytes = base64::decode(payload.trim())
        .map_err(|error| Fault::invalid("image", format!("image: expected base64: {error}")))?;
    let text = parameters::of_png(&bytes).unwrap_or_default();
    let items = if text.is_empty() { json!({}) } else { json!({ "parameters": text }) };
    let members = if text.is_empty() { Map::new() } else { parameters::members(&text) };
    Ok(axum::Json(json!({ "info": text, "items": items, "parameters": members })))
}
