//! Pictures that take part in a prompt: what a vision tower sees of them becomes tokens beside those of the text.

use std::path::Path;

use super::opened::{Additions, ImagePrompts, once, subject};
use super::request::{Request, Settings};
use super::run::{Run, finite, stage_runs};
use super::sd_image_prompts;
use super::seen::Seen;
use super::towers::{of_a_picture, see, tower_subject};
use crate::bind::alias;
use crate::image::Image;
use crate::models::flux::redux::Redux;
use crate::models::flux::{self, IpAdapter, IpForm};
use crate::models::vision::{self, Family, Output, Vision};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::slot::{IMAGE_EMBEDDER, IMAGE_ENCODER, IP_ADAPTER};
use crate::source::{self, Network, Networks, Part, Place, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, reserve};

/// What goes beside a model, each with all that its file has.
pub static BESIDE: [Place; 5] = [
    Place::needed(&IMAGE_ENCODER, &alias::SIGLIP_VISION, |component| {
        Ok(Box::new(networks::whole_vision(component, Family::Siglip)?))
    }),
    Place::needed(&IMAGE_ENCODER, &alias::CLIP_VISION, |component| {
        Ok(Box::new(networks::whole_vision(component, Family::Clip)?))
    }),
    Place::needed(&IMAGE_EMBEDDER, &alias::REDUX, |component| Ok(Box::new(networks::redux(component)?))),
    // Alone, it may be of any transformer: it is taken for one of FLUX.1's.
    Place::needed(&IP_ADAPTER, &alias::FLUX_IP, |component| {
        Ok(Box::new(networks::flux_ip(component, &flux::Config::dev())?))
    }),
    sd_image_prompts::IP,
];
const SIGLIP: &Place = &BESIDE[0];
const CLIP: &Place = &BESIDE[1];
const REDUX: &Place = &BESIDE[2];
const IP: &Place = &BESIDE[3];

/// The names of its subjects.
const SIGLIP_NAME: &str = "siglip";
const REDUX_NAME: &str = "redux";
const IP_NAME: &str = "ip encoder";

/// The class and the architecture of diffusers' directories of Redux, which go beside a model.
pub const PRIOR: [&str; 2] = ["FluxPriorReduxPipeline", "flux_redux"];

/// What a model was opened with for pictures that take part in a prompt.
pub(super) struct FluxImagePrompts {
    /// FLUX.1 Redux.
    redux: Option<ReduxPrior>,
    /// What sees pictures for an IP-Adapter, which is within the denoiser.
    ip: Option<Part<Vision>>,
}

/// SigLIP, and the embedder of FLUX.1 Redux.
struct ReduxPrior {
    tower: Part<Vision>,
    embedder: Part<Redux>,
}

impl Networks for FluxImagePrompts {
    fn networks(&self) -> Vec<Network<'_>> {
        let redux = self.redux.iter().flat_map(|redux| [redux.tower.networks(), redux.embedder.networks()].concat());
        redux.chain(self.ip.iter().flat_map(Networks::networks)).collect()
    }
}

impl FluxImagePrompts {
    /// What `additions` give for a transformer that `beside` describes, and the IP-Adapter that is to be within it; `None` if they give
    /// nothing.
    ///
    /// # Errors
    /// As [`open_with`](super::open_with).
    pub(super) fn open(
        additions: &Additions,
        beside: &flux::Config,
    ) -> Result<Option<(FluxImagePrompts, Option<Part<IpAdapter>>)>> {
        let redux = match &additions.redux {
            Some(path) => Some(ReduxPrior::open(additions, path, beside.joint_attention_dim)?),
            None => None,
        };
        let (ip, adapter) = match &additions.ip_adapter {
            Some(path) => {
                let (tower, adapter) = ip_adapter(additions, path, beside)?;
                (Some(tower), Some(adapter))
            }
            None => (None, None),
        };
        if redux.is_none() && ip.is_none() && !additions.image_encoders.is_empty() {
            let error =
                Error::option("--image-encoder", "an encoder beside something that looks at pictures", "one alone");
            return Err(error.with_hint("--redux and --ip-adapter do"));
        }
        let is_empty = redux.is_none() && ip.is_none();
        Ok((!is_empty).then(|| (FluxImagePrompts { redux, ip }, adapter)))
    }
}

impl ImagePrompts for FluxImagePrompts {
    fn prompt_tokens(&self) -> Option<usize> {
        self.redux.as_ref().map(|redux| redux.tower.net.config().tokens())
    }

    fn looks_in_blocks(&self) -> bool {
        self.ip.is_some()
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        let mut subjects = Vec::new();
        if let Some(redux) = self.redux.as_ref().filter(|_| !settings.redux.is_empty()) {
            subjects.extend(redux.subjects(settings.redux.len()));
        }
        if let Some(tower) = self.ip.as_ref().filter(|_| settings.ip_images > 0) {
            // A negative prompt comes with a black picture.
            let pictures = settings.ip_images + usize::from(settings.passes() > 1);
            subjects.push(tower_subject(tower, IP_NAME, once(pictures)));
        }
        subjects
    }

    fn bytes(&self, settings: &Settings) -> usize {
        let redux = self.redux.as_ref().filter(|_| !settings.redux.is_empty()).map(|redux| {
            // What is seen of each picture, and the sum of what becomes of it.
            let config = redux.tower.net.config();
            let (seen, made) = (config.hidden_size, redux.embedder.net.config().txt_in_features);
            of_a_picture(config) + size_of::<f32>() * config.tokens() * (settings.redux.len() * seen + 3 * made)
        });
        let ip = self.ip.as_ref().filter(|_| settings.ip_images > 0).map(|tower| {
            let config = tower.net.config();
            let seen = config.projection_dim.unwrap_or(0).max(config.hidden_size);
            of_a_picture(config) + 3 * size_of::<f32>() * (settings.ip_images + 1) * seen
        });
        redux.unwrap_or(0) + ip.unwrap_or(0)
    }

    fn look(&self, request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<Seen> {
        let subjects = self.subjects(settings);
        let mut seen = Seen::default();
        if !subjects.is_empty() {
            let stages = subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum();
            let start = run.begin(Phase::Encode, stages, 0)?;
            let mut left = subjects.iter();
            if let Some(redux) = self.redux.as_ref().filter(|_| !settings.redux.is_empty())
                && let (Some(tower), Some(embedder)) = (left.next(), left.next())
            {
                seen.redux = redux.look(request, [tower, embedder], run)?;
            }
            if let (Some(tower), Some(subject)) = (&self.ip, left.next()) {
                seen.ip = see_for_passes(tower, subject, request, settings, run)?;
            }
            run.end(Phase::Encode, start)?;
        }
        if let Some(tower) = self.ip.as_ref().filter(|_| settings.ip_images == 0) {
            // The adapter is there, and counts nothing.
            let nothing = reserve::zeros("what is seen of a picture", seen_width(tower.net.config()))?;
            seen.ip = vec![nothing; settings.passes()];
        }
        Ok(seen)
    }
}

/// The vision tower and the adapter for `--ip-adapter`, which is `path`.
fn ip_adapter(additions: &Additions, path: &Path, beside: &flux::Config) -> Result<(Part<Vision>, Part<IpAdapter>)> {
    let adapter = networks::flux_ip(&source::beside(path, IP)?, beside)?;
    let config = adapter.net.config();
    let (place, family, projected) = match config.form {
        IpForm::Xlabs => (CLIP, Family::Clip, true),
        IpForm::InstantX => (SIGLIP, Family::Siglip, false),
    };
    let encoder = additions.image_encoder(place, path)?;
    let tower = networks::vision(&encoder, family, Output::Pooled { projected })?;
    let found = seen_width(tower.net.config());
    if found != config.seen_dim {
        let at = "width of what the vision tower sees, which the IP-Adapter reads";
        return Err(Error::mismatch(&encoder.origin, at, config.seen_dim.to_string(), found.to_string()));
    }
    Ok((tower, adapter))
}

/// How many numbers a tower makes of a picture for an IP-Adapter.
fn seen_width(config: &vision::Config) -> usize {
    match config.model_type {
        Family::Clip => config.projection_dim.unwrap_or(config.hidden_size),
        Family::Siglip => config.hidden_size,
    }
}

/// What an IP-Adapter is given for each pass: what `tower` sees of the pictures of `request`, and with a negative prompt what it sees
/// of a black one, as often. diffusers has it once there; the same keys and values again change nothing.
fn see_for_passes(
    tower: &Part<Vision>,
    subject: &Subject<'_>,
    request: &Request,
    settings: &Settings,
    run: &mut Run<'_>,
) -> Result<Vec<Vec<f32>>> {
    let black = Image::new(1, 1, vec![0; 3]).ok_or_else(|| Error::graph("picture", "a black one"))?;
    let mut pictures: Vec<&Image> = request.ip_images.iter().map(|picture| picture.image()).collect();
    if settings.passes() > 1 {
        pictures.push(&black);
    }
    let seen = see(tower, subject, &pictures, false, run)?;
    let (own, of_black) = seen.split_at(request.ip_images.len());
    let mut passes = vec![own.concat()];
    for _ in 1..settings.passes() {
        passes.push(reserve::repeat("what is seen of a picture", &of_black.concat(), own.len())?);
    }
    Ok(passes)
}

impl ReduxPrior {
    fn open(additions: &Additions, path: &Path, width: usize) -> Result<ReduxPrior> {
        let embedder = networks::redux(&source::beside(path, REDUX)?)?;
        let tower = networks::vision(&additions.image_encoder(SIGLIP, path)?, Family::Siglip, Output::LAST)?;
        let config = embedder.net.config();
        let fits = |what, expected: usize, part: &Path, found: usize| match expected == found {
            true => Ok(()),
            false => Err(Error::mismatch(part, what, expected.to_string(), found.to_string())),
        };
        fits("txt_in_features, which is the width of prompts", width, path, config.txt_in_features)?;
        let origin = tower.bound.origin();
        fits("width of the vision tower, which Redux reads", config.redux_dim, origin, tower.net.config().hidden_size)?;
        Ok(ReduxPrior { tower, embedder })
    }

    fn subjects(&self, pictures: usize) -> [Subject<'_>; 2] {
        let tokens = Dims::new().with(Symbol::IMAGE_TOKENS, self.tower.net.config().tokens());
        [
            tower_subject(&self.tower, SIGLIP_NAME, once(pictures)),
            subject(&self.embedder, REDUX_NAME, Phase::Encode, tokens, once(pictures)),
        ]
    }

    /// The weighted sum of what becomes of each picture, as diffusers' `FluxPriorReduxPipeline` has it.
    fn look(&self, request: &Request, [tower, embedder]: [&Subject<'_>; 2], run: &mut Run<'_>) -> Result<Vec<f32>> {
        let pictures: Vec<&Image> = request.redux.iter().map(|(picture, _)| picture.image()).collect();
        let seen = see(&self.tower, tower, &pictures, false, run)?;
        let (mut running, mut sum) = (run.start(embedder)?, Vec::new());
        for (seen, (_, weight)) in seen.iter().zip(&request.redux) {
            running.set(self.embedder.net.seen, seen)?;
            run.compute(&mut running, Cadence::Request)?;
            let tokens = finite(running.get(self.embedder.net.tokens)?, "what Redux makes of a picture")?;
            reserve::resize("tokens of a picture", &mut sum, tokens.len())?;
            sum.iter_mut().zip(&tokens).for_each(|(sum, token)| *sum += weight * token);
        }
        run.finish(running);
        Ok(sum)
    }
}
