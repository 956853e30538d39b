//! What pictures say of how they were made: to other tools as text, and as the JSON that the command line writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::image::Picture;
use pinhole::pipeline::{
    self, ControlParameters, Generated, LoraFile, Opened, Origin, Parameters, PictureTexts, Request, Settings,
    WeightedPicture, model_name, origins,
};

/// The model that made a picture.
pub(crate) struct Made {
    model: String,
    /// Where its parts come from, if they come from several files.
    parts: Vec<Origin>,
    loras: Vec<(PathBuf, f32)>,
    /// The files of the ControlNets.
    controls: Vec<PathBuf>,
    /// The file of the network that made the pictures larger.
    upscaler: Option<String>,
    /// The refiner.
    refiner: Option<String>,
}

impl Made {
    /// By `model`.
    pub(crate) fn by(model: &Opened) -> Made {
        Made {
            model: model_name(&model.source.path),
            parts: origins(&model.source),
            loras: model.loras.iter().map(|lora| (lora.path.clone(), lora.strength)).collect(),
            controls: model.rules.controls.iter().map(|control| control.path.clone()).collect(),
            upscaler: model.upscaler.as_ref().map(|upscaler| text(upscaler.path())),
            refiner: model.refiner.as_ref().map(|refiner| text(&refiner.source.path)),
        }
    }

    /// The texts of picture `index` of what `request` gave. A picture does not tell who asked for it.
    pub(crate) fn texts(&self, request: &Request, index: usize, generated: &Generated) -> PictureTexts {
        let Generated { settings, computed, verdicts, .. } = generated;
        let flagged = verdicts.get(index).map(|verdict| verdict.flagged);
        let name = |picture: &Arc<Picture>| text(picture.name());
        let weighted = request.redux.iter().map(|(picture, weight)| WeightedPicture::new(picture.name(), *weight));
        let loras = self.loras.iter().map(|(path, strength)| (path.as_path(), *strength));
        let parameters = Parameters {
            prompt: &request.prompt,
            loras: LoraFile::all(loras),
            image: request.image.as_ref().map(name),
            last_image: request.last_image.as_ref().map(name),
            references: request.references.iter().map(name).collect(),
            control_image: request.control_image.as_ref().map(name),
            controls: self.controls(request, settings),
            mask: request.mask.as_ref().map(name),
            redux_images: weighted.collect(),
            ip_images: request.ip_images.iter().map(name).collect(),
            upscaler: self.upscaler.clone(),
            refiner: self.refiner.clone(),
            noise: request.noise.as_ref().map(|_| "given".to_owned()),
            ..Parameters::of(settings, request.posterior, flagged.is_some())
        };
        let made = pipeline::Made {
            model: &self.model,
            parts: &self.parts,
            settings,
            computed,
            flagged,
            // All frames of a film have its seed.
            seed: settings.seed.wrapping_add((index / settings.frames.max(1)) as u64),
        };
        made.texts(&parameters)
    }

    /// The ControlNets, and what each follows.
    fn controls(&self, request: &Request, settings: &Settings) -> Vec<ControlParameters> {
        let pictures = request.controls.iter().map(|control| &control.image).chain(&request.control_image);
        let mut names = pictures.map(|picture| picture.name());
        let mut controls = Vec::with_capacity(self.controls.len());
        for (path, settings) in self.controls.iter().zip(&settings.controls) {
            controls.push(ControlParameters::new(settings, path, &mut names));
        }
        controls
    }
}

/// A path in JSON, which holds text only.
fn text(path: &Path) -> String {
    path.display().to_string()
}
