//! What a model is opened with beside its own files, and what refuses it where it has no place.

use std::path::PathBuf;

use crate::bind::lora;
use crate::{Error, Result};

/// What a model is opened with beside its own files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Additions {
    /// How many of the last layers of CLIP the prompt does not go through, as diffusers counts them; `None` is the model's way.
    pub clip_skip: Option<usize>,
    /// LoRAs, each with its strength. Their changes add up.
    pub loras: Vec<(PathBuf, f32)>,
    /// Redux: a file, a diffusers directory or a folder of files.
    pub redux: Option<PathBuf>,
    /// Vision towers, for what looks at pictures and brings none of its own: files, or folders with one.
    pub image_encoders: Vec<PathBuf>,
    /// An IP-Adapter.
    pub ip_adapter: Option<PathBuf>,
    /// ControlNets: a file or a folder of a diffusers directory each.
    pub controls: Vec<PathBuf>,
    /// InfiniteYou's projector, which makes tokens of a face: a file.
    pub id_projector: Option<PathBuf>,
    /// Whether the first ControlNet reads a face in the prompt's place, with or without a projector; or, of Stable Diffusion, the
    /// IP-Adapter reads one.
    pub takes_id: bool,
    /// Words that text encoders were taught: the file of each, and the word, if it is not the file's own.
    pub embeddings: Vec<(PathBuf, Option<String>)>,
    /// A folder with such files, each for the word that is its name.
    pub embeddings_folder: Option<PathBuf>,
    /// What makes the pictures larger that were drawn: a file.
    pub upscaler: Option<PathBuf>,
    /// A model that makes the last steps: what [`crate::source::Source::open`] takes.
    pub refiner: Option<PathBuf>,
    /// LoRAs of the first of two experts alone, which begins with noise, each with its strength.
    pub loras_high: Vec<(PathBuf, f32)>,
    /// LoRAs of the second of two experts alone.
    pub loras_low: Vec<(PathBuf, f32)>,
    /// Whether a model that changes pictures modulates these as at time 0; `None` is as its files say.
    pub zero_cond_t: Option<bool>,
}

impl Additions {
    /// Refuses what lets pictures take part in a prompt, beside a model that has no place for it.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(in crate::pipeline) fn refuse_image_prompts(&self) -> Result<()> {
        self.refuse_image_prompts_except_encoders()?;
        Additions::refuse(&[("--image-encoder", self.image_encoders.first())])
    }

    /// The same for a model that may look at pictures by itself.
    pub(in crate::pipeline) fn refuse_image_prompts_except_encoders(&self) -> Result<()> {
        Additions::refuse(&[("--redux", self.redux.as_ref()), ("--ip-adapter", self.ip_adapter.as_ref())])
    }

    fn refuse(given: &[(&'static str, Option<&PathBuf>)]) -> Result<()> {
        for &(option, path) in given {
            if let Some(path) = path {
                let expected = "nothing, since it does not go beside this kind of model";
                return Err(Error::option(option, expected, path.display().to_string()));
            }
        }
        Ok(())
    }

    /// Refuses ControlNets beside a model that runs none.
    pub(in crate::pipeline) fn refuse_controls(&self) -> Result<()> {
        self.refuse_face()?;
        match self.controls.first() {
            Some(path) => {
                let found = path.display().to_string();
                Err(Error::option("--control", "nothing, since this kind of model runs no ControlNets yet", found))
            }
            None => Ok(()),
        }
    }

    /// Refuses a face beside a model whose ControlNets read none.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(in crate::pipeline) fn refuse_face(&self) -> Result<()> {
        match self.takes_id || self.id_projector.is_some() {
            true => Err(Error::option("--id-embedding", "a model whose ControlNets may read a face", "another")),
            false => Ok(()),
        }
    }

    /// The same beside a model whose IP-Adapters may read one, unless there is an IP-Adapter.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(in crate::pipeline) fn refuse_face_alone(&self) -> Result<()> {
        if self.takes_id && self.id_projector.is_none() {
            return match self.ip_adapter {
                Some(_) => Ok(()),
                None => {
                    let error = Error::option("--id-embedding", "an IP-Adapter that reads the face", "none");
                    Err(error.with_hint("give ip-adapter-faceid with --ip-adapter"))
                }
            };
        }
        self.refuse_face()
    }

    /// Refuses what goes beside models that read with CLIP: taught words, layers that are skipped, a refiner.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(in crate::pipeline) fn refuse_what_goes_with_clip(&self) -> Result<()> {
        self.refuse_embeddings()?;
        self.refuse_refiner()?;
        match self.clip_skip {
            Some(_) => Err(Error::option("--clip-skip", "a model that reads CLIP's hidden states", "one without CLIP")),
            None => Ok(()),
        }
    }

    /// Refuses a refiner beside a model that has none.
    pub(in crate::pipeline) fn refuse_refiner(&self) -> Result<()> {
        match &self.refiner {
            Some(path) => {
                let expected = "nothing, since refiners are for Stable Diffusion XL";
                Err(Error::option("--refiner", expected, path.display().to_string()))
            }
            None => Ok(()),
        }
    }

    /// Refuses a word on how pictures that are changed are modulated, beside a model that changes none.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(in crate::pipeline) fn refuse_zero_cond_t(&self) -> Result<()> {
        match self.zero_cond_t {
            Some(_) => Err(Error::option("--zero-cond-t", "a model that edits pictures and may be told so", "another")),
            None => Ok(()),
        }
    }

    /// Refuses taught words beside a model whose text encoders take none.
    pub(in crate::pipeline) fn refuse_embeddings(&self) -> Result<()> {
        let (first, folder) = (self.embeddings.first(), self.embeddings_folder.as_ref());
        let given = [("--embedding", first.map(|(path, _)| path)), ("--embeddings", folder)];
        for (option, path) in given {
            if let Some(path) = path {
                let expected = "nothing, since this kind of model takes no textual inversions";
                return Err(Error::option(option, expected, path.display().to_string()));
            }
        }
        Ok(())
    }

    /// The most inputs that a LoRA gives a layer that is called one of `names`.
    ///
    /// # Errors
    /// As [`lora::Lora::open`].
    pub(in crate::pipeline) fn inputs(&self, names: &[&str]) -> Result<Option<usize>> {
        let mut most = None;
        for (path, _) in &self.loras {
            most = most.max(lora::Lora::open(path)?.inputs(names));
        }
        Ok(most)
    }

    /// Adds the LoRAs to the networks that they may change, of a model without experts.
    ///
    /// # Errors
    /// As [`lora::add`]; [`Error::Option`] for LoRAs of one expert.
    pub(in crate::pipeline) fn apply(&self, targets: &mut [lora::Target<'_>]) -> Result<Vec<lora::Report>> {
        for (option, loras) in [("--lora-high", &self.loras_high), ("--lora-low", &self.loras_low)] {
            if let Some((path, _)) = loras.first() {
                let error = Error::option(option, "a model of two experts", path.display().to_string());
                return Err(error.with_hint("give it with --lora"));
            }
        }
        let mut reports = Vec::with_capacity(self.loras.len());
        for (path, strength) in &self.loras {
            reports.push(lora::add(path, *strength, targets)?);
        }
        Ok(reports)
    }
}
