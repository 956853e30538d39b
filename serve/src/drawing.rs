//! What a client asks for, in the native interface's words. The other interfaces are translated into it.

use std::sync::Arc;

use pinhole::image::Picture;
use pinhole::pipeline::Request;
use pinhole::sample::{Sampler, Schedule};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use crate::catalogue::{Catalogue, ModelKey};
use crate::fault::Fault;
use crate::limits::{Limits, few};
use crate::pictures;

/// One job: what to draw. What is not said is the model's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drawing {
    /// A model by the name that the server gave it; the first one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to draw.
    #[schema(example = "a small yellow star on a blue background")]
    pub prompt: String,
    /// What not to draw; has an effect with a `cfg_scale` above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Pixels across.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Pixels down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Denoising steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Of the noise: picture `i` of a batch has `seed + i`. By default it is a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How many pictures; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Guidance as an input, for models that take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// Classifier-free guidance; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f32>,
    /// A sampler by the name that the command line or the web UI gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// A schedule by such a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How a flow is bent towards noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f32>,
    /// The share of fresh noise in each step, for DDIM and TCD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f32>,
    /// A picture to begin with, or to be changed: PNG, JPEG or WebP in base64, or a `data:` URL. Other URLs are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Which part of it is painted anew: white.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// How far from the picture the result may be, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    /// Pictures that the model looks at.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "few")]
    pub references: Vec<String>,
    /// LoRAs by the names that the server gave them.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "few")]
    pub loras: Vec<LoraUse>,
    /// A preview after every so many steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<usize>,
    /// Seconds within which the job is done or given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<f64>,
}

/// A LoRA and its strength.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraUse {
    /// Its name.
    pub name: String,
    /// Its strength; 1 by default.
    #[serde(default = "full")]
    pub strength: f32,
}

fn full() -> f32 {
    1.0
}

/// A drawing that was looked at: what the pipeline is asked, and the model that draws it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The model with its LoRAs.
    pub key: ModelKey,
    /// The request, with the seed that is taken.
    pub request: Request,
    /// The room that its pictures take, until the job has ended.
    pub room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Asked {
    /// Pixels of all pictures that were given.
    pub fn pixels(&self) -> usize {
        let Request { image, mask, references, .. } = &self.request;
        let mut pixels = 0;
        for picture in image.iter().chain(mask).chain(references) {
            pixels += picture.image().width() * picture.image().height();
        }
        pixels
    }
}

impl Drawing {
    /// Fixes what would differ if the job were begun again: the model's name, and the seed.
    ///
    /// # Errors
    /// As [`Catalogue::model`].
    pub fn fix(&mut self, catalogue: &Catalogue) -> Result<(), Fault> {
        self.model = Some(catalogue.model(self.model.as_deref())?.name.clone());
        self.seed.get_or_insert_with(random_seed);
        Ok(())
    }

    /// The same without pictures, to be shown and kept in pictures.
    pub fn without_pictures(&self) -> Drawing {
        let given = |picture: &Option<String>| picture.as_ref().map(|_| "(given)".to_owned());
        Drawing { image: given(&self.image), mask: given(&self.mask), references: Vec::new(), ..self.clone() }
    }

    /// Looks at everything that can be told without the model. Pictures are decoded: this takes time, and a thread.
    ///
    /// # Errors
    /// The first value that cannot work.
    pub fn look_at(&self, catalogue: &Catalogue, limits: &Limits) -> Result<Asked, Fault> {
        self.check(limits)?;
        let model = catalogue.model(self.model.as_deref())?.name.clone();
        let mut loras = Vec::with_capacity(self.loras.len());
        for lora in &self.loras {
            if !(lora.strength.is_finite() && lora.strength.abs() <= MOST_STRENGTH) {
                let message = format!("the strength of a LoRA is a number from -{MOST_STRENGTH} to {MOST_STRENGTH}");
                return Err(Fault::invalid("loras", message));
            }
            loras.push((catalogue.lora(&lora.name)?.name.clone(), lora.strength));
        }
        let (sampler, schedule) = self.sampler_and_schedule()?;
        let picture = |name: &'static str, given: &Option<String>| {
            given.as_ref().map(|text| pictures::read(name, text, limits).map(Arc::new)).transpose()
        };
        let mut references = Vec::with_capacity(self.references.len());
        for text in &self.references {
            references.push(Arc::new(pictures::read("references", text, limits)?));
        }
        let (image, mask) = (picture("image", &self.image)?, picture("mask", &self.mask)?);
        require_equal_sizes(image.as_deref(), mask.as_deref())?;
        let request = Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            seed: self.seed.unwrap_or_default(),
            guidance: self.guidance,
            cfg_scale: self.cfg_scale,
            sampler,
            schedule,
            shift: self.shift,
            eta: self.eta,
            image,
            mask,
            strength: self.strength,
            references,
            batch: self.batch.unwrap_or(1),
            preview: self.preview,
            ..Request::default()
        };
        Ok(Asked { key: ModelKey { model, loras }, request, room: None })
    }

    /// What has bounds of the server's.
    fn check(&self, limits: &Limits) -> Result<(), Fault> {
        for (name, text) in [("prompt", Some(&self.prompt)), ("negative_prompt", self.negative_prompt.as_ref())] {
            if let Some(text) = text.filter(|text| text.len() > limits.prompt) {
                let message = format!("{name}: expected at most {} bytes, found {}", limits.prompt, text.len());
                return Err(Fault::invalid(name, message));
            }
        }
        let counts = [
            ("batch", self.batch, 1, limits.batch),
            ("steps", self.steps, 1, limits.steps),
            ("loras", Some(self.loras.len()), 0, limits.loras),
            ("references", Some(self.references.len()), 0, limits.inputs),
            ("preview", self.preview, 1, usize::MAX),
        ];
        for (name, count, least, most) in counts {
            if let Some(count) = count.filter(|count| !(least..=most).contains(count)) {
                return Err(Fault::invalid(name, format!("{name}: expected {least} to {most}, found {count}")));
            }
        }
        if let Some(deadline) = self.deadline.filter(|deadline| !(deadline.is_finite() && *deadline > 0.0)) {
            return Err(Fault::invalid(
                "deadline",
                format!("deadline: expected seconds, more than 0, found {deadline}"),
            ));
        }
        Ok(())
    }

    fn sampler_and_schedule(&self) -> Result<(Option<Sampler>, Option<Schedule>), Fault> {
        let (mut sampler, mut schedule) = (None, None);
        if let Some(name) = &self.sampler {
            let named = Sampler::with_schedule(name)?;
            (sampler, schedule) = (Some(named.0), named.1);
        }
        if let Some(name) = &self.schedule {
            let given: Schedule = name.parse()?;
            if schedule.is_some_and(|named| named != given) {
                return Err(Fault::invalid("schedule", format!("schedule: `{name}` is not what the sampler names")));
            }
            schedule = Some(given);
        }
        Ok((sampler, schedule))
    }
}

/// A mask covers its picture pixel by pixel. Said here, in the words of requests.
fn require_equal_sizes(image: Option<&Picture>, mask: Option<&Picture>) -> Result<(), Fault> {
    let (Some(image), Some(mask)) = (image, mask) else { return Ok(()) };
    let [image, mask] = [image, mask].map(|picture| [picture.image().width(), picture.image().height()]);
    if image == mask {
        return Ok(());
    }
    let message =
        format!("mask: expected {}x{} pixels, as image has, found {}x{}", image[0], image[1], mask[0], mask[1]);
    Err(Fault::invalid("mask", message))
}

const MOST_STRENGTH: f32 = 100.0;

/// A seed of 32 bits: short enough to type again.
pub fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Entry;

    fn look(json: &str) -> Result<Asked, Fault> {
        let Ok(drawing) = serde_json::from_str::<Drawing>(json) else { return Err(Fault::internal("JSON")) };
        let entry = Entry { name: "mini".into(), path: "mini".into() };
        drawing.look_at(&Catalogue { models: vec![entry], loras: vec![] }, &Limits::default())
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        let long = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(1 << 20));
        for (json, param) in [
            (long.as_str(), "prompt"),
            (r#"{"batch": 0}"#, "batch"),
            (r#"{"batch": 9}"#, "batch"),
            (r#"{"steps": 100000000}"#, "steps"),
            (r#"{"deadline": -1}"#, "deadline"),
            (r#"{"preview": 0}"#, "preview"),
            (r#"{"sampler": "none such"}"#, "sampler"),
            (r#"{"schedule": "none such"}"#, "schedule"),
            (r#"{"sampler": "DPM++ 2M Karras", "schedule": "beta"}"#, "schedule"),
            (r#"{"model": "../../etc/passwd"}"#, "model"),
            (r#"{"loras": [{"name": "../x"}]}"#, "lora"),
            (r#"{"image": "http://127.0.0.1/picture.png"}"#, "image"),
            (r#"{"image": "file:///etc/passwd"}"#, "image"),
            (r#"{"mask": "%%%"}"#, "mask"),
            (r#"{"references": ["aGVsbG8="]}"#, "references"),
        ] {
            let refused = look(json).map(|_| ()).map_err(|fault| fault.param.clone().unwrap_or_default());
            assert_eq!(refused, Err(param.to_owned()), "{}", &json[..json.len().min(80)]);
        }
    }

    #[test]
    fn a_drawing_begun_again_is_the_same() {
        let catalogue = Catalogue { models: vec![Entry { name: "mini".into(), path: "mini".into() }], loras: vec![] };
        let mut drawing = Drawing { prompt: "a star".into(), cfg_scale: Some(3.5), ..Drawing::default() };
        assert_eq!(drawing.fix(&catalogue), Ok(()));
        assert!(drawing.seed.is_some() && drawing.model.as_deref() == Some("mini"));
        let text = serde_json::to_string(&drawing).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Drawing>(&text).ok(), Some(drawing));
    }
}
