//! Pictures that the UNet of Stable Diffusion looks at beside the prompt: what a vision tower sees of them becomes tokens.

use super::opened::{Additions, ImagePrompts, once, subject};
use super::request::{Request, Settings};
use super::run::{Run, finite, stage_runs};
use super::seen::Seen;
use super::towers::{of_a_picture, see, tower_subject};
use crate::bind::alias;
use crate::bind::lora::LowRank;
use crate::image::Image;
use crate::models::unet::{IpAdapter, IpForm, Projector, Unet};
use crate::models::vision::{Family, Output, Vision};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::slot::{IMAGE_ENCODER, IP_ADAPTER};
use crate::source::{self, Network, Networks, Part, Place, networks, unet_changes};
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, reserve};

/// IP-Adapters, which go beside a model.
pub(super) const IP: Place =
    Place::needed(&IP_ADAPTER, &alias::UNET_IP, |component| Ok(Box::new(unet_changes::unet_ip_alone(component)?)));
const CLIP: Place = Place::needed(&IMAGE_ENCODER, &alias::CLIP_VISION, |component| {
    Ok(Box::new(networks::whole_vision(component, Family::Clip)?))
});

/// The names of its subjects.
const TOWER: &str = "ip encoder";
const PROJECTOR: &str = "ip tokens";

/// A vision tower, and what makes tokens of what it sees. What looks at these is within the denoiser. Of an adapter that reads the embeddings
/// of faces, the tower is not there.
pub(super) struct SdImagePrompts {
    tower: Option<Part<Vision>>,
    projector: Part<Projector>,
    /// Whether tokens are made of one vector for a picture, which is 0 for a negative prompt.
    pooled: bool,
    /// Numbers of what is seen of a picture, and of its tokens.
    widths: [usize; 2],
}

impl Networks for SdImagePrompts {
    fn networks(&self) -> Vec<Network<'_>> {
        // The projector's weights are the adapter's, which is with the denoiser.
        self.tower.as_ref().map(Networks::networks).unwrap_or_default()
    }
}

/// What an IP-Adapter has within a UNet.
pub(super) struct WithinUnet {
    pub(super) adapter: Part<IpAdapter>,
    /// What it changes in the UNet's own attentions.
    changes: LowRank,
}

impl WithinUnet {
    /// Changes `unet`, which has the adapter.
    ///
    /// # Errors
    /// As [`LowRank::attach`].
    pub(super) fn attach(&self, unet: &mut Part<Unet>) -> Result<()> {
        match self.changes.is_empty() {
            true => Ok(()),
            false => self.changes.attach("", &mut unet.target()),
        }
    }
}

impl SdImagePrompts {
    /// What `additions` give, and the IP-Adapter that is to be within `unet` with its changes of that; `None` if they give nothing.
    ///
    /// # Errors
    /// As [`open_with`](super::open_with).
    pub(super) fn open(additions: &Additions, unet: &Part<Unet>) -> Result<Option<(SdImagePrompts, WithinUnet)>> {
        if let Some(path) = &additions.redux {
            let expected = "nothing, since it does not go beside this kind of model";
            return Err(Error::option("--redux", expected, path.display().to_string()));
        }
        let Some(path) = &additions.ip_adapter else {
            return match additions.image_encoders.first() {
                Some(_) => {
                    let expected = "an encoder beside something that looks at pictures";
                    let error = Error::option("--image-encoder", expected, "one alone");
                    Err(error.with_hint("--ip-adapter does"))
                }
                None => Ok(None),
            };
        };
        let component = source::beside(path, &IP)?;
        let adapter = networks::unet_ip(&component)?;
        let config = adapter.net.config();
        config.fit(&component.origin, unet.net.config())?;
        let changes = unet_changes::unet_ip_changes(&component, unet)?;
        let projector = networks::unet_ip_projector(&adapter)?;
        if let IpForm::Face { seen_dim, .. } = config.form {
            if let Some(encoder) = additions.image_encoders.first() {
                let expected = "nothing, since this IP-Adapter reads the embedding of a face";
                return Err(Error::option("--image-encoder", expected, encoder.display().to_string()));
            }
            let widths = [seen_dim, config.token_dim * config.tokens()];
            return Ok(Some((
                SdImagePrompts { tower: None, projector, pooled: true, widths },
                WithinUnet { adapter, changes },
            )));
        }
        if additions.takes_id {
            let expected = "an IP-Adapter that reads faces, as ip-adapter-faceid";
            return Err(Error::option("--id-embedding", expected, path.display().to_string()));
        }
        let pooled = matches!(config.form, IpForm::Projection { .. });
        let output =
            if pooled { Output::Pooled { projected: true } } else { Output::States { skipped: 1, normalised: false } };
        let encoder = additions.image_encoder(&CLIP, path)?;
        let tower = networks::vision(&encoder, Family::Clip, output)?;
        let of_tower = tower.net.config();
        let found = if pooled { of_tower.projection_dim.unwrap_or(0) } else { of_tower.hidden_size };
        if found != config.seen_dim() {
            let at = "width of what the vision tower sees, which the IP-Adapter reads";
            let error = Error::mismatch(&encoder.origin, at, config.seen_dim().to_string(), found.to_string());
            return Err(error.with_hint("adapters read CLIP ViT-H, or ViT-bigG: the model card says which"));
        }
        let seen = if pooled { found } else { found * of_tower.tokens() };
        let widths = [seen, config.token_dim * config.tokens()];
        Ok(Some((SdImagePrompts { tower: Some(tower), projector, pooled, widths }, WithinUnet { adapter, changes })))
    }

    /// How many pictures the tower sees, and of how many tokens are made.
    fn pictures(settings: &Settings, pooled: bool) -> [usize; 2] {
        let (own, negative) = (settings.ip_images, usize::from(settings.passes() > 1));
        [own + if pooled { 0 } else { negative }, own + negative]
    }
}

impl ImagePrompts for SdImagePrompts {
    fn prompt_tokens(&self) -> Option<usize> {
        None
    }

    fn looks_in_blocks(&self) -> bool {
        true
    }

    fn face_width(&self) -> Option<usize> {
        self.tower.is_none().then_some(self.widths[0])
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        if settings.ip_images == 0 {
            return Vec::new();
        }
        let [seen, made] = SdImagePrompts::pictures(settings, self.pooled);
        let tokens = self.tower.as_ref().map_or(1, |tower| tower.net.config().tokens());
        let dims = Dims::new().with(Symbol::IMAGE_TOKENS, tokens);
        let mut subjects = Vec::new();
        subjects.extend(self.tower.as_ref().map(|tower| tower_subject(tower, TOWER, once(seen))));
        subjects.push(subject(&self.projector, PROJECTOR, Phase::Encode, dims, once(made)));
        subjects
    }

    fn bytes(&self, settings: &Settings) -> usize {
        if settings.ip_images == 0 {
            return 0;
        }
        let [seen, made] = self.widths;
        let numbers = (settings.ip_images + 1).saturating_mul(3 * (seen + made));
        let of_a_picture = self.tower.as_ref().map_or(0, |tower| of_a_picture(tower.net.config()));
        of_a_picture + size_of::<f32>() * numbers
    }

    fn look(&self, request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<Seen> {
        let passes = settings.passes();
        let subjects = self.subjects(settings);
        let Some((projector, towers)) = subjects.split_last() else {
            // The adapter is there, and counts nothing.
            let nothing = reserve::zeros("tokens of a picture", self.widths[1])?;
            return Ok(Seen { ip: vec![nothing; passes], ..Seen::default() });
        };
        let stages = subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum();
        let start = run.begin(Phase::Encode, stages, 0)?;
        let pictures: Vec<&Image> = request.ip_images.iter().map(|picture| picture.image()).collect();
        // As diffusers, a negative prompt comes with zeros: for pixels, or for what is seen of them.
        let blank = passes > 1;
        let mut seen = match (&self.tower, towers.first()) {
            (Some(tower), Some(subject)) => see(tower, subject, &pictures, blank && !self.pooled, run)?,
            _ => {
                let faces = request.id_embedding.as_deref().unwrap_or_default();
                faces.chunks_exact(self.widths[0].max(1)).map(<[f32]>::to_vec).collect()
            }
        };
        if blank && self.pooled {
            seen.push(reserve::zeros("what is seen of a picture", self.widths[0])?);
        }
        let mut running = run.start(projector)?;
        let mut made = Vec::with_capacity(seen.len());
        for seen in &seen {
            running.set(self.projector.net.seen, seen)?;
            run.compute(&mut running, Cadence::Request)?;
            made.push(finite(running.get(self.projector.net.tokens)?, "what the IP-Adapter makes of a picture")?);
        }
        run.finish(running);
        let (own, of_blank) = made.split_at(settings.ip_images.min(made.len()));
        let mut ip = vec![own.concat()];
        for _ in 1..passes {
            ip.push(reserve::repeat("tokens of a picture", &of_blank.concat(), own.len())?);
        }
        run.end(Phase::Encode, start)?;
        Ok(Seen { ip, ..Seen::default() })
    }
}
