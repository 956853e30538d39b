//! What Wan 2.1 sees of the pictures that its videos begin and end with, by CLIP's vision tower.

use super::fit::{self, Side};
use super::opened::{Additions, ImagePrompts};
use super::request::{Request, Settings};
use super::run::{Run, stage_runs};
use super::seen::Seen;
use super::towers::{of_a_picture, see, tower_subject};
use crate::bind::alias;
use crate::image::Image;
use crate::models::vision::{self, Output, Vision};
use crate::models::wan::Wan;
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::slot::IMAGE_ENCODER;
use crate::source::{Component, Network, Networks, Part, Place, Source, networks};
use crate::{Error, Result, reserve};

/// The name of its subject.
const TOWER: &str = "image encoder";

/// The states before the last layer, without the final norm.
const OUTPUT: Output = Output::States { skipped: 1, normalised: false };

/// What a tower that is given with `--image-encoder` is.
const PLACE: Place = Place::given(&IMAGE_ENCODER, &alias::CLIP_VISION, |component| Ok(Box::new(tower(component)?)));

/// The tower of `component`.
pub(super) fn tower(component: &Component) -> Result<Part<Vision>> {
    networks::vision(component, vision::Family::Clip, OUTPUT)
}

/// The tower of a model that looks at pictures.
pub(super) struct WanPictures {
    tower: Part<Vision>,
    /// How many pictures are seen: the first frame, or the last one, too.
    pictures: usize,
    /// Whether that is the picture that a video refers to, or its first frame, or none: then all that is seen is zeros.
    follows: bool,
}

impl WanPictures {
    /// That of `source`, or the one that is given, if the transformer looks at pictures.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if there is none; [`Error::Mismatch`] if it sees something else; [`Error::Option`] if one is given to a model
    /// that looks at none.
    pub(super) fn open(source: &Source, additions: &Additions, first: &Part<Wan>) -> Result<Option<WanPictures>> {
        let config = first.net.config();
        let Some(width) = config.image_dim else {
            return match additions.image_encoders.first() {
                Some(path) => {
                    let expected = "nothing, since this model looks at no pictures";
                    Err(Error::option("--image-encoder", expected, path.display().to_string()))
                }
                None => Ok(None),
            };
        };
        let tower = match additions.image_encoders.is_empty() {
            true => tower(source.component(&IMAGE_ENCODER)?)?,
            false => tower(&additions.image_encoder(&PLACE, &source.path)?)?,
        };
        let seen = tower.net.config();
        let own = Side::of(first, "image_dim of the transformer", width);
        fit::equal(source, own, Side::of(&tower, "the width of the vision tower", seen.hidden_size))?;
        let pictures = config.pos_embed_seq_len.map_or(1, |_| 2);
        if let Some(positions) = config.pos_embed_seq_len {
            fit::exactly(first, "pos_embed_seq_len", positions, pictures * seen.tokens())?;
        }
        Ok(Some(WanPictures { tower, pictures, follows: config.follows_film() }))
    }

    /// Tokens of what is seen of all pictures of a request.
    pub(super) fn tokens(&self) -> usize {
        self.pictures * self.tower.net.config().tokens()
    }
}

impl Networks for WanPictures {
    fn networks(&self) -> Vec<Network<'_>> {
        self.tower.networks()
    }
}

impl ImagePrompts for WanPictures {
    fn prompt_tokens(&self) -> Option<usize> {
        None
    }

    fn looks_in_blocks(&self) -> bool {
        false
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        if self.follows && settings.reference_sources.is_empty() && !settings.given_frames[0] {
            return Vec::new();
        }
        vec![tower_subject(&self.tower, TOWER, Runs::of_request(self.pictures))]
    }

    fn bytes(&self, settings: &Settings) -> usize {
        let config = self.tower.net.config();
        let states = size_of::<f32>() * self.tokens() * config.hidden_size;
        of_a_picture(config).saturating_add(states.saturating_mul(1 + settings.passes()))
    }

    fn look(&self, request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<Seen> {
        let references = request.references.iter().filter(|_| self.follows);
        let given = references.chain(&request.image).chain(&request.last_image).take(self.pictures);
        let images: Vec<&Image> = given.map(|picture| picture.image()).collect();
        let numbers = self.tokens() * self.tower.net.config().hidden_size;
        if self.follows && images.is_empty() {
            let nothing = reserve::zeros("what is seen", numbers)?;
            return Ok(Seen { ip: vec![nothing; settings.passes()], ..Seen::default() });
        }
        if images.len() != self.pictures {
            return Err(Error::graph("look", "fewer pictures than are seen"));
        }
        let subjects = self.subjects(settings);
        let [subject] = &subjects[..] else { return Err(Error::graph("look", "one tower")) };
        let start = run.begin(Phase::Encode, stage_runs(run.plan, subject), 0)?;
        let mut all = reserve::room("what is seen", numbers)?;
        for states in see(&self.tower, subject, &images, false, run)? {
            all.extend(states);
        }
        run.end(Phase::Encode, start)?;
        Ok(Seen { ip: vec![all; settings.passes()], ..Seen::default() })
    }
}
