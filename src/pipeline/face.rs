//! A face that a ControlNet reads in the prompt's place: InfiniteYou.
//!
//! A program that recognises faces makes an **embedding** of one: a few hundred numbers. A resampler, the **projector**, makes tokens of
//! them, which are as wide as a prompt's. The tokens may also be given as they are.

use std::path::Path;

use super::request::{Request, Settings};
use super::run::{Run, finite};
use crate::bind::alias;
use crate::index::tensor_at;
use crate::models::resampler::{self, Resampler};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::slot::ID_PROJECTOR;
use crate::source::{Network, Networks, Part, Place, Source, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, npy, reserve, safetensors};

/// What gives the face, and what makes tokens of it.
const EMBEDDING: &str = "--id-embedding";
const PROJECTOR: &str = "--id-projector";

/// What its subject is called in a plan.
const NAME: &str = "id projector";

/// More tokens than any face has.
const MOST_TOKENS: usize = 512;

/// More faces than an IP-Adapter looks at.
const MOST_FACES: usize = 16;

/// More bytes than a file with a face has.
const MOST_BYTES: usize = 64 << 20;

/// The place of the projector.
const PLACE: Place =
    Place::given(&ID_PROJECTOR, &alias::RESAMPLER, |component| Ok(Box::new(networks::resampler(component)?.0)));

/// What makes tokens of a face for a model.
pub struct Face {
    projector: Option<(Part<Resampler>, resampler::Config)>,
    /// Numbers of a token.
    width: usize,
}

impl Face {
    /// For a model whose prompts have tokens of `width` numbers, with the projector of the file `projector`; `None` without one, unless the
    /// model `takes_tokens`. The `reader` is its first ControlNet: the file, and whether it has modes.
    ///
    /// # Errors
    /// [`Error::Option`] without a ControlNet that could read it; what opening the projector returns; [`Error::Mismatch`] if its tokens
    /// have another width.
    pub(super) fn open(
        projector: Option<&Path>,
        takes_tokens: bool,
        width: usize,
        reader: Option<(&Path, bool)>,
    ) -> Result<Option<Face>> {
        if projector.is_none() && !takes_tokens {
            return Ok(None);
        }
        let option = if projector.is_some() { PROJECTOR } else { EMBEDDING };
        let hint = "give InfiniteYou's InfuseNet with --control";
        let Some((origin, has_modes)) = reader else {
            return Err(Error::option(option, "a ControlNet that reads the face", "none").with_hint(hint));
        };
        if has_modes {
            let expected = "a first ControlNet without modes, which reads the face";
            return Err(Error::option(option, expected, origin.display().to_string()).with_hint(hint));
        }
        let Some(path) = projector else { return Ok(Some(Face { projector: None, width })) };
        let (part, config) = networks::resampler(&Source::lone(path, &PLACE)?)?;
        if config.output_dim != width {
            let expected = format!("tokens of {width} numbers, as the transformer reads");
            return Err(Error::mismatch(path, "proj_out.weight", expected, config.output_dim.to_string()));
        }
        Ok(Some(Face { projector: Some((part, config)), width }))
    }

    /// How many tokens `embedding` becomes, and whether the projector makes them of it.
    ///
    /// # Errors
    /// [`Error::Option`] if it is neither an embedding that the projector takes nor whole tokens, or not finite.
    pub(super) fn tokens(&self, embedding: &[f32]) -> Result<(usize, bool)> {
        if let Some(number) = embedding.iter().find(|number| !number.is_finite()) {
            return Err(Error::option(EMBEDDING, "finite numbers", number.to_string()));
        }
        let (found, tokens) = (embedding.len(), embedding.len() / self.width.max(1));
        if let Some((_, config)) = &self.projector
            && found == config.embedding_dim
        {
            return Ok((config.num_queries, true));
        }
        if found == tokens * self.width && (1..=MOST_TOKENS).contains(&tokens) {
            return Ok((tokens, false));
        }
        let tokens = format!("tokens of {} numbers each", self.width);
        let (expected, hint) = match &self.projector {
            Some((_, config)) => {
                (format!("{} numbers, or {tokens}", config.embedding_dim), "give the embedding of one face")
            }
            None => {
                (tokens, "an embedding needs a projector: give InfiniteYou's image_proj_model.bin with --id-projector")
            }
        };
        Err(Error::option(EMBEDDING, expected, format!("{found} numbers")).with_hint(hint))
    }

    /// What runs once for a request with a face that is projected.
    pub(super) fn subject(&self, settings: &Settings) -> Option<Subject<'_>> {
        let (part, _) = self.projector.as_ref().filter(|_| settings.id_projected)?;
        let dims = Dims::new().with(Symbol::IMAGE_TOKENS, 1);
        let (model, bound, runs) = (&part.net.model, &part.bound, Runs::of_request(1));
        Some(Subject { name: NAME, phase: Phase::Encode, model, bound, dims, runs })
    }

    /// The tokens of the face of `request`, one behind the other; none without a face.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`] if numbers overflow.
    pub(super) fn look(&self, request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<Vec<f32>> {
        let embedding = request.id_embedding.as_deref().unwrap_or_default();
        let Some((subject, (part, _))) = self.subject(settings).zip(self.projector.as_ref()) else {
            return reserve::repeat("a face", embedding, 1);
        };
        let start = run.begin(Phase::Encode, super::run::stage_runs(run.plan, &subject), 0)?;
        let mut running = run.start(&subject)?;
        running.set(part.net.seen, embedding)?;
        run.compute(&mut running, Cadence::Request)?;
        let tokens = finite(running.get(part.net.tokens)?, "the tokens of the face")?;
        run.finish(running);
        run.end(Phase::Encode, start)?;
        Ok(tokens)
    }

    /// Bytes of the arrays that this makes in host memory.
    pub(super) fn bytes(&self, settings: &Settings) -> usize {
        2 * size_of::<f32>() * self.width * settings.id_tokens
    }
}

impl Networks for Face {
    fn networks(&self) -> Vec<Network<'_>> {
        self.projector.as_ref().map(|(part, _)| part.networks()).unwrap_or_default()
    }
}

/// How many faces `embedding` is of, if each has `width` numbers, as an IP-Adapter reads them.
///
/// # Errors
/// [`Error::Option`] without a face, or if it is not whole faces of finite numbers.
pub(super) fn count(embedding: Option<&[f32]>, width: usize) -> Result<usize> {
    let Some(embedding) = embedding else {
        let error = Error::option(EMBEDDING, "the face that the IP-Adapter reads", "none");
        return Err(error.with_hint("give its embedding with --id-embedding FILE, or leave --ip-adapter out"));
    };
    if let Some(number) = embedding.iter().find(|number| !number.is_finite()) {
        return Err(Error::option(EMBEDDING, "finite numbers", number.to_string()));
    }
    let (found, faces) = (embedding.len(), embedding.len() / width.max(1));
    if found == faces * width && (1..=MOST_FACES).contains(&faces) {
        return Ok(faces);
    }
    let expected = format!("{width} numbers for each of 1 to {MOST_FACES} faces");
    Err(Error::option(EMBEDDING, expected, format!("{found} numbers")).with_hint("give insightface's normed_embedding"))
}

/// Refuses a face without what reads it, and the reverse. Returns how many tokens it becomes, and whether the projector makes them.
pub(super) fn settings(face: Option<&Face>, request: &Request) -> Result<(usize, bool)> {
    match (face, &request.id_embedding) {
        (None, None) => Ok((0, false)),
        (Some(face), Some(embedding)) => face.tokens(embedding),
        (Some(_), None) => {
            let error = Error::option(EMBEDDING, "the face that the ControlNet reads in the prompt's place", "none");
            Err(error.with_hint("give its embedding with --id-embedding FILE, or leave --id-projector out"))
        }
        (None, Some(_)) => {
            let expected = "nothing, since the model was opened without what reads a face";
            let error = Error::option(EMBEDDING, expected, "a face");
            Err(error.with_hint("give InfiniteYou's network with --control and its projector with --id-projector"))
        }
    }
}

/// The numbers of a face in the file at `path`: NumPy's array, or the only tensor of a safetensors file or of one of PyTorch's.
///
/// # Errors
/// Those of [`npy::read`] and [`safetensors::open`]; [`Error::Mismatch`] for several tensors, or one that holds no numbers.
pub fn read_id_embedding(path: &Path) -> Result<Vec<f32>> {
    let map = crate::index::Map::open(path)?;
    if map.bytes().len() > MOST_BYTES {
        let expected = format!("at most {MOST_BYTES} bytes");
        return Err(Error::mismatch(path, "face", expected, map.bytes().len().to_string()));
    }
    if npy::begins(map.bytes()) {
        return Ok(npy::read(path, map.bytes())?.numbers);
    }
    let index = safetensors::open(path)?;
    let mut tensors = index.iter();
    let (Some((name, tensor)), None) = (tensors.next(), tensors.next()) else {
        let names: Vec<&str> = index.iter().map(|(name, _)| name).take(5).collect();
        let found = if names.is_empty() { "none".to_owned() } else { format!("several: {}", names.join(", ")) };
        return Err(Error::mismatch(path, "face", "one tensor", found));
    };
    let mut numbers = reserve::zeros("a face", tensor.shape.elements())?;
    let unreadable = |error: String| Error::mismatch(path, tensor_at(name), "floats", error);
    match tensor.storage {
        crate::index::Storage::Number(dtype) => {
            pinhole_quant::rows::dequantize_parallel(dtype, tensor.bytes(), &mut numbers)
                .map_err(|error| unreadable(error.to_string()))?;
        }
        other => return Err(unreadable(other.to_string())),
    }
    Ok(numbers)
}
