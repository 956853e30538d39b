//! An opened model, and the three parts in which families differ.

mod additions;
mod given;

pub use additions::Additions;
pub use given::Given;

use std::ops::Range;
use std::sync::Arc;

use super::choices::TinyUse;
use super::face::Face;
use super::prompts::{ArraySpec, Prompt};
use super::request::{Request, Settings};
use super::rules::Rules;
use super::run::{Run, Running};
use super::safety::Safety;
use super::seen::Seen;
use super::textual_inversion::Words;
use super::upscale::UpscaleModel;
use crate::bind::lora;
use crate::exec::Session;
use crate::image::Picture;
use crate::models::step_cache::CachePorts;
use crate::plan::Phase;
use crate::plan::Runs;
use crate::plan::measure::Subject;
use crate::sample::Scheduler;
use crate::source::slot::VAE;
use crate::source::{HasModel, Network, Networks, Part, Place, Source};
use crate::stage::{Dims, Port, Symbol};
use crate::text::{Encoded, PromptSyntax};
use crate::{Error, Result, reserve};

/// A family of models: what one is on disk, and how it is opened.
pub struct Family {
    /// As in GGUF's `general.architecture`.
    pub name: &'static str,
    /// The classes of diffusers' pipelines.
    pub classes: &'static [&'static str],
    /// The places that its networks take, in the order of bundles; the denoiser is the first.
    pub places: &'static [Place],
    /// What goes beside its models, each in a file of its own.
    pub beside: &'static [Place],
    /// How the names of tensors end by which its denoiser is told from another family's of the same kind: one of them is there. None
    /// where no other has to be told apart, or all others have marks.
    pub marks: &'static [&'static str],
    /// How many tokens a prompt has, unless a model says otherwise.
    pub tokens: usize,
    /// Finds the denoiser of a source whose networks are at their places, without the rest of the model.
    pub denoiser: fn(&Source) -> Result<Box<dyn Denoiser>>,
    /// Opens a source whose networks are at their places.
    pub open: fn(Source, &Additions) -> Result<Opened>,
}

/// A model whose weights are found, ready for a pipeline. Only headers and configurations were read.
pub struct Opened {
    /// What it is.
    pub family: &'static Family,
    /// What it was opened from, with a component at each place of the family.
    pub source: Source,
    /// From texts to what the denoiser is given.
    pub encoders: Box<dyn Encoders>,
    /// From noise to latents.
    pub denoiser: Box<dyn Denoiser>,
    /// From latents to pictures, and back.
    pub autoencoder: Box<dyn Autoencoder>,
    /// A tiny one, for previews or in its stead. If the model has no other, that is `autoencoder`, too.
    pub tiny: Option<Box<dyn Autoencoder>>,
    /// How sigmas are spaced.
    pub scheduler: Scheduler,
    /// What requests may say, and what they mean if they do not.
    pub rules: Rules,
    /// What became of the LoRAs that it was opened with.
    pub loras: Vec<lora::Report>,
    /// What it was opened with for pictures that take part in a prompt.
    pub image_prompts: Option<Box<dyn ImagePrompts>>,
    /// What makes tokens of a face, if a ControlNet reads one.
    pub face: Option<Face>,
    /// What judges the pictures that are drawn.
    pub safety: Option<Safety>,
    /// What makes them larger then.
    pub upscaler: Option<UpscaleModel>,
    /// A model that goes on where this one stops, if it was opened with one.
    pub refiner: Option<Box<Opened>>,
}

/// The three parts in which families differ.
pub(super) type Parts = (Box<dyn Encoders>, Box<dyn Denoiser>, Box<dyn Autoencoder>);

impl Opened {
    /// A model of `family` with nothing beside it.
    pub(super) fn new(
        family: &'static Family,
        source: Source,
        (encoders, denoiser, autoencoder): Parts,
        (scheduler, rules, loras): (Scheduler, Rules, Vec<lora::Report>),
    ) -> Opened {
        Opened {
            family,
            source,
            encoders,
            denoiser,
            autoencoder,
            tiny: None,
            scheduler,
            rules,
            loras,
            image_prompts: None,
            face: None,
            safety: None,
            upscaler: None,
            refiner: None,
        }
    }

    /// Every network, in the order of bundles.
    pub fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.denoiser.networks();
        networks.extend(self.encoders.networks());
        networks.extend(self.image_prompts.iter().flat_map(|pictures| pictures.networks()));
        networks.extend(self.face.iter().flat_map(Networks::networks));
        networks.extend(self.autoencoder.networks());
        if self.has_full_autoencoder() {
            networks.extend(self.tiny.iter().flat_map(|tiny| tiny.networks()));
        }
        networks.extend(self.safety.iter().flat_map(Networks::networks));
        networks
    }

    /// Whether its autoencoder is not the tiny one.
    pub fn has_full_autoencoder(&self) -> bool {
        self.source.has(&VAE)
    }

    /// What the pictures of a request are encoded with.
    pub fn encoder(&self, settings: &Settings) -> &dyn Autoencoder {
        match &self.tiny {
            Some(tiny) if settings.tiny_encodes => &**tiny,
            _ => &*self.autoencoder,
        }
    }

    /// Whether the tiny autoencoder encodes pictures, too, if it is used for `tiny`.
    pub(super) fn tiny_encodes(&self, tiny: Option<TinyUse>) -> bool {
        tiny == Some(TinyUse::All) && self.tiny.as_ref().is_some_and(|tiny| tiny.goes(Direction::Encode))
    }

    /// What makes the pictures of a request.
    pub fn decoder(&self, settings: &Settings) -> &dyn Autoencoder {
        match &self.tiny {
            Some(tiny) if settings.tiny_vae == Some(TinyUse::All) => &**tiny,
            _ => &*self.autoencoder,
        }
    }
}

/// Something that turns a text into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// What it is called in messages.
    pub name: &'static str,
    /// The name of its tokenizer.
    pub tokenizer: &'static str,
    /// How many tokens it knows.
    pub vocabulary: usize,
    /// How many it reads at most, in a request that does not say.
    pub length: usize,
}

/// The text encoders of a model.
pub trait Encoders: Networks {
    /// Its tokenizers, in order.
    fn readers(&self) -> Vec<Reader>;

    /// The tokens of `text`, for each reader.
    ///
    /// # Errors
    /// What the tokenizers return.
    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>>;

    /// How many tokens each of `texts` becomes for the denoiser: the prompt, and the negative one if there is one.
    ///
    /// # Errors
    /// What the tokenizers return; [`Error::Option`] for a prompt that cannot be read.
    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        Ok(vec![settings.max_sequence_length; texts.len()])
    }

    /// Whether it reads prompts in `syntax`.
    fn reads(&self, syntax: PromptSyntax) -> bool {
        syntax == PromptSyntax::Plain
    }

    /// The words that it was taught.
    fn words(&self) -> Option<&Words> {
        None
    }

    /// The vectors of taught words among `tokens`, which are those of each reader for a text.
    ///
    /// # Errors
    /// What reading their files returns.
    fn taught(&self, tokens: &[Encoded]) -> Result<Vec<f32>> {
        let _ = tokens;
        Ok(Vec::new())
    }

    /// What runs, in order, for each text.
    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>>;

    /// What becomes of a text of so many tokens.
    fn arrays(&self, tokens: usize) -> Vec<ArraySpec>;

    /// Sends texts, given as the tokens of each reader, through the encoders.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`] if numbers overflow.
    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>>;

    /// Whether they see the pictures that the model looks at. Then prompts are not remembered, since those belong to them.
    fn see(&self) -> bool {
        false
    }

    /// Bytes of the arrays that it has of these pictures in host memory, at most, beside what its networks have.
    fn seen_bytes(&self, settings: &Settings) -> usize {
        let _ = settings;
        0
    }

    /// As [`encode`](Encoders::encode), of texts with `pictures` between their words.
    ///
    /// # Errors
    /// As [`encode`](Encoders::encode).
    fn encode_seeing(
        &self,
        run: &mut Run<'_>,
        settings: &Settings,
        texts: &[Vec<Encoded>],
        pictures: &[Arc<Picture>],
    ) -> Result<Vec<Prompt>> {
        let _ = pictures;
        self.encode(run, settings, texts)
    }
}

/// What sees the pictures that take part in a prompt, beside a model.
pub trait ImagePrompts: Networks {
    /// How many tokens come of such pictures before those of the text; `None` if none do.
    fn prompt_tokens(&self) -> Option<usize>;

    /// Whether the denoiser looks at pictures in its blocks.
    fn looks_in_blocks(&self) -> bool;

    /// How many numbers of a face are read in the place of a picture; `None` if pictures are.
    fn face_width(&self) -> Option<usize> {
        None
    }

    /// What runs, in the order in which it does.
    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>>;

    /// Bytes of the arrays in host memory beside what the networks have, at most.
    fn bytes(&self, settings: &Settings) -> usize;

    /// Looks at the pictures of `request`: a part of the phase in which prompts are encoded.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`](crate::Error::NotFinite) if numbers overflow.
    fn look(&self, request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<Seen>;
}

/// The ports of a denoiser that the loop uses in every evaluation.
#[derive(Clone, Copy, Debug)]
pub struct StepPorts {
    /// What is denoised, packed: `[.., B]`.
    pub latents: Port,
    /// What the model says of it, in the same shape.
    pub prediction: Port,
    /// Which condition each item of the batch takes: `[B]`, I32. Condition `evaluation * passes + pass` belongs to that pass of
    /// that evaluation, where `passes` are computed at once.
    pub condition: Port,
}

/// The network, or the networks, that turn noise into latents.
pub trait Denoiser: Networks {
    /// What runs, one after the other, for latents of the extents `latents`, `[w, h, F, C, N]`. The `runs.steps` of all add up to
    /// the number of evaluations.
    fn subjects(&self, settings: &Settings, latents: [usize; 5], evaluations: usize) -> Vec<Subject<'_>>;

    /// The ports of subject number `subject`.
    fn ports(&self, subject: usize) -> StepPorts;

    /// Whether conditions are times alone, and the same in all passes: then number `evaluation` is that of all passes of that evaluation.
    fn conditions_are_times(&self) -> bool {
        false
    }

    /// How many neighbouring numbers of a packed prediction keep their length when they are guided; `None` if guidance changes it.
    fn guided_width(&self) -> Option<usize> {
        None
    }

    /// Fills the ports of subject number `subject` that hold for all of its steps.
    ///
    /// # Errors
    /// What filling ports returns.
    fn fill(&self, subject: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()>;

    /// Gives the ControlNets of a session that is filled what they take of some `pictures` of the batch, if it differs between pictures;
    /// `followed` is that of all, for each ControlNet, and `batch` says how many these are.
    ///
    /// # Errors
    /// What filling ports returns.
    fn follow(
        &self,
        session: &mut Session<'_>,
        (followed, batch): (&[Vec<f32>], usize),
        pictures: &[usize],
    ) -> Result<()> {
        let _ = (session, followed, batch, pictures);
        Ok(())
    }

    /// Bytes of the arrays that [`fill`](Denoiser::fill) makes beside those of the prompts, as far as they grow with the picture.
    fn filled_bytes(&self, settings: &Settings) -> usize {
        let _ = settings;
        0
    }

    /// The ports of a step cache that subject number `subject` has in a request of these `settings`, if it has one.
    fn cache(&self, subject: usize, settings: &Settings) -> Option<CachePorts> {
        let _ = (subject, settings);
        None
    }

    /// How many numbers a step cache looks at for each item of the batch.
    fn probed(&self, settings: &Settings) -> usize {
        let _ = settings;
        0
    }

    /// How many tokens a picture of a request is, on which a schedule may depend; `None` if its sides are multiples of a token's.
    fn image_tokens(&self, settings: &Settings) -> Option<usize> {
        let _ = settings;
        None
    }

    /// How many numbers stand beside the latents of one picture.
    fn beside(&self, dims: [usize; 5]) -> usize {
        let _ = dims;
        0
    }

    /// What stands beside the latents of one picture: latents of another picture, `[w, h, C]`, and a mask for pixels, `[W, H]`, 1
    /// where the picture is painted anew.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is no place for them.
    fn pack_beside(&self, latents: &[f32], mask: Option<&[f32]>, dims: [usize; 5]) -> Result<Vec<f32>> {
        let _ = (latents, mask, dims);
        Err(Error::graph("pack", "a denoiser that takes latents alone"))
    }

    /// The latents of one picture, packed, with what stands beside them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn joined(&self, packed: &[f32], beside: &[f32]) -> Result<Vec<f32>> {
        let mut joined = reserve::room("the latents", packed.len() + beside.len())?;
        joined.extend_from_slice(packed);
        joined.extend_from_slice(beside);
        Ok(joined)
    }

    /// The latents of one picture, `[w, h, C]`, as a ControlNet takes them: those of the picture that it follows, and a mask for
    /// latents, `[w, h]`, if it takes one.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is no place for them.
    fn pack_followed(&self, latents: &[f32], mask: Option<&[f32]>, dims: [usize; 5]) -> Result<Vec<f32>> {
        let _ = (latents, mask, dims);
        Err(Error::graph("pack", "a denoiser without ControlNets"))
    }

    /// The latents of one picture, `[w, h, C]`, as the denoiser takes them.
    ///
    /// # Errors
    /// [`Error::Graph`] if their size is another.
    fn pack(&self, latents: &[f32], dims: [usize; 5]) -> Result<Vec<f32>>;

    /// The way back from [`pack`](Denoiser::pack).
    ///
    /// # Errors
    /// As [`pack`](Denoiser::pack).
    fn unpack(&self, packed: &[f32], dims: [usize; 5]) -> Result<Vec<f32>>;
}

/// Which way an autoencoder goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From pictures to latents.
    Encode,
    /// From latents to pictures.
    Decode,
}

/// What is given each frame of a video as soon as it is made: its number, and of some of its rows the samples, `[W, rows, 3]` in
/// -1..=1. If these are not all rows, they come in bands from the top to the bottom, of all frames before the next.
pub type FrameSink<'a> = dyn FnMut(&mut Run<'_>, usize, Range<usize>, Vec<f32>) -> Result<()> + 'a;

/// The autoencoder of a model.
pub trait Autoencoder: Networks {
    /// Channels of the latents.
    fn channels(&self) -> usize;

    /// Pixels of a latent, in both directions.
    fn factor(&self) -> usize;

    /// Frames of a latent frame, from the second on: the first frame has one of its own.
    fn frame_factor(&self) -> usize {
        1
    }

    /// Extents of the latents of a request, `[w, h, F, C, N]`. A picture has one frame. Those that a video refers to are before its own.
    fn latents(&self, settings: &Settings) -> [usize; 5] {
        let Settings { width, height, frames, batch, .. } = *settings;
        let (factor, frames) = (self.factor(), frames.saturating_sub(1) / self.frame_factor() + 1);
        [width / factor, height / factor, settings.front_frames + frames, self.channels(), batch]
    }

    /// Whether it has weights for `direction`.
    fn goes(&self, direction: Direction) -> bool;

    /// Whether it gives a distribution that a picture's latents are drawn from; otherwise it gives the latents themselves.
    fn draws(&self) -> bool {
        true
    }

    /// What runs for each of `pictures` pictures, or of so many videos one after the other.
    fn subjects(&self, settings: &Settings, direction: Direction, pictures: usize) -> Vec<Subject<'_>>;

    /// The samples of one picture, `[W, H, 3]` in -1..=1, from its latents `[w, h, C]` in the denoiser's space. `running` is a
    /// session of the subject that decodes.
    ///
    /// # Errors
    /// What the device returns.
    fn decode(&self, run: &mut Run<'_>, running: &mut Running<'_>, latents: &[f32]) -> Result<Vec<f32>>;

    /// The frames of one video from its latents `[w, h, F, C]` in the denoiser's space. `sink` is given each, in order and as soon as it
    /// is made.
    ///
    /// # Errors
    /// What the device returns, and what `sink` does.
    fn decode_video(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        latents: &[f32],
        sink: &mut FrameSink<'_>,
    ) -> Result<()> {
        let samples = self.decode(run, running, latents)?;
        let rows = 0..self.factor() * running.dim(Symbol::LATENT_HEIGHT)?;
        sink(run, 0, rows, samples)
    }

    /// The distribution of the latents of one video of so many `frames`, `[w, h, F, 2 C]`, as [`encode`](Autoencoder::encode) has it.
    /// `source` is asked for the samples of each frame by its number, in order.
    ///
    /// # Errors
    /// As [`encode`](Autoencoder::encode), and what `source` returns.
    fn encode_video(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        frames: usize,
        source: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        match frames {
            1 => self.encode(run, running, &source(0)?),
            _ => Err(Error::graph("encode", "an autoencoder of pictures, and a video")),
        }
    }

    /// The distribution of the latents of one picture of samples `[W, H, 3]` in -1..=1: the mean and the logarithm of the
    /// variance of each, `[w, h, 2 C]`, in the autoencoder's space. If it [draws](Autoencoder::draws) none, only the first half counts.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotAModel`] if it cannot encode.
    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>>;

    /// Brings the latents of one picture, `[w, h, C]`, from the autoencoder's space into the denoiser's.
    ///
    /// # Errors
    /// What reading its statistics returns, if it has any.
    fn normalize(&self, latents: &mut [f32]) -> Result<()>;
}

/// Runs of something that runs once for each of `times` texts or pictures.
pub fn once(times: usize) -> Runs {
    Runs::of_request(times)
}

/// The subject of `part`.
pub(super) fn subject<'a, M: HasModel>(
    part: &'a Part<M>,
    name: &'static str,
    phase: Phase,
    dims: Dims,
    runs: Runs,
) -> Subject<'a> {
    Subject { name, phase, model: part.net.model(), bound: &part.bound, dims, runs }
}

/// How many texts of a request go through the encoders.
pub(super) fn texts(settings: &Settings) -> Runs {
    once(settings.texts())
}
