//! OpenAI's images interface (<https://platform.openai.com/docs/api-reference/images>), as far as one picture model has it.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Extension, Multipart, Path, State};
use axum::http::{HeaderMap, header};
use pinhole::image::{Image, Picture};
use pinhole::pipeline::{Rules, Use};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::native::address;
use super::{App, Json};
use crate::catalogue::ModelKey;
use crate::drawing::Drawing;
use crate::fault::{Fault, FaultBody};
use crate::keys::Caller;
use crate::pictures;
use crate::server::Server;
use crate::store::seconds;

/// What the fields of OpenAI's own client say. Others that it has (quality, style, user, ..) have no effect here.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct Generations {
    /// What to draw.
    prompt: String,
    /// A model by the name that the server gave it; the first one by default.
    model: Option<String>,
    /// How many pictures.
    n: Option<usize>,
    /// `WIDTHxHEIGHT`, or `auto` for the model's own size.
    size: Option<String>,
    /// `b64_json` or `url`; both if nothing is said.
    response_format: Option<String>,
    /// `png`, the only one there is.
    output_format: Option<String>,
    /// Streams of partial pictures are not there: the native interface has previews.
    stream: Option<bool>,
    /// Beside OpenAI's own: what not to draw.
    negative_prompt: Option<String>,
    /// Beside OpenAI's own: steps.
    steps: Option<usize>,
    /// Beside OpenAI's own: the seed.
    seed: Option<u64>,
    /// Beside OpenAI's own: guidance as an input of the model.
    guidance: Option<f32>,
    /// Beside OpenAI's own: classifier-free guidance.
    cfg_scale: Option<f32>,
    /// Beside OpenAI's own: the sampler.
    sampler: Option<String>,
    /// Beside OpenAI's own, for edits: how far from the picture the result may be.
    strength: Option<f32>,
    /// Beside OpenAI's own, for edits: `start` begins with the picture, `reference` looks at it, as models do that were trained to edit.
    image_use: Option<String>,
}

/// A form with pictures, as OpenAI's client sends it.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the description alone")]
pub(super) struct Edits {
    /// The picture to be changed. More of them, as `image[]`, are looked at by models that look at pictures.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    image: String,
    /// What is transparent in it is painted anew; of one without transparency, what is white.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    mask: Option<String>,
    prompt: String,
    model: Option<String>,
    n: Option<usize>,
    size: Option<String>,
    response_format: Option<String>,
    seed: Option<u64>,
    steps: Option<usize>,
    strength: Option<f32>,
    /// `start` or `reference`.
    image_use: Option<String>,
}

/// Pictures.
#[derive(Serialize, ToSchema)]
pub(super) struct Images {
    created: u64,
    data: Vec<ImageData>,
    output_format: &'static str,
    size: String,
}

/// A picture, in the answer or by its address.
#[derive(Serialize, ToSchema)]
pub(super) struct ImageData {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Which of both.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Both,
    Base64,
    Url,
}

impl Generations {
    fn form(&self) -> Result<Form, Fault> {
        if self.stream == Some(true) {
            let fault = Fault::invalid("stream", "stream: pictures are not streamed");
            return Err(fault.with_hint("listen to /v1/jobs/ID/events for previews"));
        }
        if let Some(format) = self.output_format.as_deref().filter(|format| *format != "png") {
            return Err(Fault::invalid("output_format", format!("output_format: expected png, found {format}")));
        }
        match self.response_format.as_deref() {
            None => Ok(Form::Both),
            Some("b64_json") => Ok(Form::Base64),
            Some("url") => Ok(Form::Url),
            Some(other) => {
                let message = format!("response_format: expected b64_json or url, found {other}");
                Err(Fault::invalid("response_format", message))
            }
        }
    }

    fn drawing(&self) -> Result<Drawing, Fault> {
        let size = self.size.as_deref().filter(|size| *size != "auto").map(extents).transpose()?;
        Ok(Drawing {
            model: self.model.clone(),
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: size.map(|[width, _]| width),
            height: size.map(|[_, height]| height),
            steps: self.steps,
            seed: self.seed,
            batch: self.n,
            guidance: self.guidance,
            cfg_scale: self.cfg_scale,
            sampler: self.sampler.clone(),
            strength: self.strength,
            ..Drawing::default()
        })
    }
}

fn extents(size: &str) -> Result<[usize; 2], Fault> {
    let both = size.split_once('x').and_then(|(width, height)| Some([width.parse().ok()?, height.parse().ok()?]));
    both.ok_or_else(|| Fault::invalid("size", format!("size: expected WIDTHxHEIGHT or auto, found {size}")))
}

/// Draw pictures of a prompt.
#[utoipa::path(post, path = "/v1/images/generations", tag = "openai", request_body = Generations, responses(
    (status = 200, description = "Pictures.", body = Images),
    (status = 400, description = "A value that cannot work.", body = FaultBody),
    (status = 422, description = "It cannot fit into memory.", body = FaultBody),
    (status = 429, description = "The queue is full.", body = FaultBody)
))]
pub(super) async fn generations(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Json(asked): Json<Generations>,
) -> Result<axum::Json<Images>, Fault> {
    let form = asked.form()?;
    draw(&server, &caller, &headers, asked.drawing()?, form).await
}

/// Draws, waits, and answers. Who leaves stops the job.
async fn draw(
    server: &App,
    caller: &Caller,
    headers: &HeaderMap,
    drawing: Drawing,
    form: Form,
) -> Result<axum::Json<Images>, Fault> {
    let (job, snapshot) = server.accept(caller, drawing).await?.leash().wait().await?;
    let pictures = server.jobs.pictures(&job, &snapshot).await?;
    let outcome = snapshot.outcome.unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let mut data = Vec::with_capacity(pictures.len());
    for (at, picture) in pictures.iter().enumerate() {
        let b64_json = (form != Form::Url).then(|| base64::encode(picture));
        let url = (form != Form::Base64).then(|| format!("http://{host}{}", address(job.id, at)));
        data.push(ImageData { b64_json, url });
    }
    let created = seconds(SystemTime::now()) as u64;
    let size = format!("{}x{}", outcome.size[0], outcome.size[1]);
    Ok(axum::Json(Images { created, data, output_format: "png", size }))
}

/// Change pictures as a prompt says.
#[utoipa::path(post, path = "/v1/images/edits", tag = "openai",
    request_body(content = Edits, content_type = "multipart/form-data"), responses(
    (status = 200, description = "Pictures.", body = Images),
    (status = 400, description = "A value that cannot work.", body = FaultBody),
    (status = 422, description = "It cannot fit into memory.", body = FaultBody),
    (status = 429, description = "The queue is full.", body = FaultBody)
))]
pub(super) async fn edits(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    form: Multipart,
) -> Result<axum::Json<Images>, Fault> {
    let given = EditForm::read(form, server.limits.inputs).await?;
    let form = given.asked.form()?;
    let looking = Arc::clone(&server);
    let drawing = tokio::task::spawn_blocking(move || given.drawing(&looking)).await;
    let drawing = drawing.map_err(|_| Fault::internal("the server met a bug while it looked at a form"))??;
    draw(&server, &caller, &headers, drawing, form).await
}

/// What a form said.
#[derive(Default)]
struct EditForm {
    asked: Generations,
    images: Vec<Vec<u8>>,
    mask: Option<Vec<u8>>,
}

impl EditForm {
    async fn read(mut form: Multipart, most: usize) -> Result<EditForm, Fault> {
        let broken = |error: axum::extract::multipart::MultipartError| {
            Fault::invalid("body", format!("the form is not whole: {}", error.body_text()))
        };
        let mut all = EditForm::default();
        while let Some(field) = form.next_field().await.map_err(broken)? {
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(broken)?;
            match name.as_str() {
                "image" | "image[]" if all.images.len() < most => all.images.push(bytes.to_vec()),
                "image" | "image[]" => return Err(Fault::invalid("image", format!("at most {most} images"))),
                "mask" => all.mask = Some(bytes.to_vec()),
                _ => all.asked.set(&name, &bytes)?,
            }
        }
        Ok(all)
    }

    /// In the native interface's words. Decodes pictures.
    fn drawing(self, server: &Server) -> Result<Drawing, Fault> {
        let mut drawing = self.asked.drawing()?;
        let Some((first, others)) = self.images.split_first() else {
            return Err(Fault::invalid("image", "image: expected a picture, found none"));
        };
        let picture = pictures::from_file("image", first, &server.limits)?;
        let model = server.catalogue().model(drawing.model.as_deref())?.name.clone();
        let opened = server.shelf.open(&ModelKey { model, loras: Vec::new() })?;
        let mask = match &self.mask {
            Some(mask) => Some(mask_of(mask, &server.limits)?),
            None => transparency("image", first, &server.limits)?,
        };
        if mask.is_none() && self.asked.are_references(&opened.rules, self.images.len())? {
            drawing.references = self.images.iter().map(base64::encode).collect();
            return Ok(drawing);
        }
        if !others.is_empty() {
            let message = "image: this model takes one picture, and the form has more";
            return Err(Fault::invalid("image", message));
        }
        if drawing.width.is_none() {
            // As large as the picture, where the model draws such sizes.
            let multiple = opened.rules.multiple;
            let [width, height] =
                [picture.image().width(), picture.image().height()].map(|side| side / multiple * multiple);
            if width.min(height) > 0 && width.saturating_mul(height) <= server.limits.pixels {
                (drawing.width, drawing.height) = (Some(width), Some(height));
            }
        }
        drawing.image = Some(base64::encode(first));
        drawing.mask = mask.as_ref().and_then(pictures::preview).map(base64::encode);
        Ok(drawing)
    }
}

impl Generations {
    /// Whether so many pictures are looked at, and not begun with. Unless it is said, that is so where the model can do nothing else with
    /// them.
    fn are_references(&self, rules: &Rules, pictures: usize) -> Result<bool, Fault> {
        match self.image_use.as_deref() {
            Some("reference") => Ok(true),
            Some("start") => Ok(false),
            None => Ok(rules
                .references
                .is_some_and(|references| references.needed || pictures > 1 || !rules.inputs.contains(&Use::Start))),
            Some(other) => {
                Err(Fault::invalid("image_use", format!("image_use: expected start or reference, found {other}")))
            }
        }
    }

    /// Sets a field of a form, whose values are texts.
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Fault> {
        let text = std::str::from_utf8(value).map_err(|_| Fault::invalid("body", "a field of the form is no text"))?;
        fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<Option<T>, Fault> {
            text.trim().parse().map(Some).map_err(|_| Fault::invalid(name, format!("{name}: expected a number")))
        }
        match name {
            "prompt" => self.prompt = text.to_owned(),
            "model" => self.model = Some(text.to_owned()),
            "size" => self.size = Some(text.to_owned()),
            "response_format" => self.response_format = Some(text.to_owned()),
            "output_format" => self.output_format = Some(text.to_owned()),
            "negative_prompt" => self.negative_prompt = Some(text.to_owned()),
            "sampler" => self.sampler = Some(text.to_owned()),
            "image_use" => self.image_use = Some(text.to_owned()),
            "stream" => self.stream = Some(text.eq_ignore_ascii_case("true")),
            "n" => self.n = number(name, text)?,
            "steps" => self.steps = number(name, text)?,
            "seed" => self.seed = number(name, text)?,
            "guidance" => self.guidance = number(name, text)?,
            "cfg_scale" => self.cfg_scale = number(name, text)?,
            "strength" => self.strength = number(name, text)?,
            _ => {}
        }
        Ok(())
    }
}

/// The mask in a file: what is transparent is white, and painted anew; without transparency it is as it is.
fn mask_of(bytes: &[u8], limits: &crate::limits::Limits) -> Result<Image, Fault> {
    match transparency("mask", bytes, limits)? {
        Some(mask) => Ok(mask),
        None => pictures::from_file("mask", bytes, limits).map(Picture::into_image),
    }
}

/// What is transparent in a picture, in white; `None` if nothing is.
fn transparency(name: &'static str, bytes: &[u8], limits: &crate::limits::Limits) -> Result<Option<Image>, Fault> {
    // Refuses what is too large before it is decoded once more.
    pictures::from_file(name, bytes, limits)?;
    let decoded = image::load_from_memory(bytes).map_err(|error| Fault::invalid(name, format!("{name}: {error}")))?;
    if !decoded.color().has_alpha() {
        return Ok(None);
    }
    let pixels = decoded.to_rgba8();
    if pixels.pixels().all(|pixel| pixel.0[3] == u8::MAX) {
        return Ok(None);
    }
    let (width, height) = pixels.dimensions();
    let white: Vec<u8> = pixels.pixels().flat_map(|pixel| [u8::MAX - pixel.0[3]; 3]).collect();
    Ok(Image::new(width as usize, height as usize, white))
}

/// Models, as OpenAI lists them.
#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn new(name: &str) -> Model {
        Model { id: name.to_owned(), object: "model", created: 0, owned_by: "pinhole" }
    }
}

/// The models of this server.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, description = "Models.", body = Models)))]
pub(super) async fn models(State(server): State<App>) -> axum::Json<Models> {
    let data = server.catalogue().models.iter().map(|entry| Model::new(&entry.name)).collect();
    axum::Json(Models { object: "list", data })
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "openai", params(("name" = String, Path, description = "Its name.")), responses(
    (status = 200, description = "The model.", body = Model), (status = 404, description = "There is none.", body = FaultBody)
))]
pub(super) async fn model(State(server): State<App>, Path(name): Path<String>) -> Result<axum::Json<Model>, Fault> {
    Ok(axum::Json(Model::new(&server.catalogue().model(Some(&name))?.name)))
}
