//! `pinhole_model`: weights, tokenizers, a schedule, defaults.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::builtin;
use pinhole::index::Map;
use pinhole::inspect::{Report, Subject};
use pinhole::pipeline::{self, Additions, Opened, Request};
use pinhole::source::{Files as Parts, Source};

use crate::buffer::Buffer;
use crate::error::{Error, Failure};
use crate::options::{self, versioned};
use crate::{entry, handle, text};

/// What a model in memory is called in messages.
const MEMORY: &str = "(memory)";

/// `pinhole_model`
pub struct Model {
    pub(crate) model: Arc<Opened>,
    bytes: u64,
}

/// `pinhole_files`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct Files {
    pub struct_size: usize,
    pub base: *const c_char,
    pub transformer: *const c_char,
    pub text_encoder: *const c_char,
    pub text_encoder_2: *const c_char,
    pub vae: *const c_char,
    pub tokenizer: *const c_char,
    pub tokenizer_2: *const c_char,
    pub unet: *const c_char,
    pub loras: *const *const c_char,
    pub lora_strengths: *const f32,
    pub lora_count: usize,
    pub redux: *const c_char,
    pub ip_adapter: *const c_char,
    pub image_encoders: *const *const c_char,
    pub image_encoder_count: usize,
    pub controls: *const *const c_char,
    pub control_count: usize,
    pub id_projector: *const c_char,
    pub takes_id: i32,
    pub reserved: i32,
    pub tiny_vae: *const c_char,
    pub embeddings: *const *const c_char,
    pub embedding_words: *const *const c_char,
    pub embedding_count: usize,
    pub embeddings_folder: *const c_char,
    pub safety_checker: *const c_char,
    pub upscaler: *const c_char,
    pub refiner: *const c_char,
    pub scheduler_config: *const c_char,
    pub zero_cond_t: i32,
    pub reserved_2: i32,
    pub transformer_2: *const c_char,
    pub lora_experts: *const i32,
}

const NO_FILES: Files = {
    let null = std::ptr::null();
    Files {
        struct_size: size_of::<Files>(),
        base: null,
        transformer: null,
        text_encoder: null,
        text_encoder_2: null,
        vae: null,
        tokenizer: null,
        tokenizer_2: null,
        unet: null,
        loras: std::ptr::null(),
        lora_strengths: std::ptr::null(),
        lora_count: 0,
        redux: null,
        ip_adapter: null,
        image_encoders: std::ptr::null(),
        image_encoder_count: 0,
        controls: std::ptr::null(),
        control_count: 0,
        id_projector: null,
        takes_id: 0,
        reserved: 0,
        tiny_vae: null,
        embeddings: std::ptr::null(),
        embedding_words: std::ptr::null(),
        embedding_count: 0,
        embeddings_folder: null,
        safety_checker: null,
        upscaler: null,
        refiner: null,
        scheduler_config: null,
        zero_cond_t: 0,
        reserved_2: 0,
        transformer_2: null,
        lora_experts: std::ptr::null(),
    }
};
versioned!(Files, "pinhole_files", offset_of!(Files, unet), NO_FILES);

/// `pinhole_model_info`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct ModelInfo {
    pub struct_size: usize,
    pub architecture: [c_char; 32],
    pub width: i32,
    pub height: i32,
    pub steps: i32,
    pub max_sequence_length: i32,
    pub guidance: f32,
    pub cfg_scale: f32,
    pub takes_guidance: i32,
    pub latent_channels: i32,
    pub file_size: u64,
    pub parameters: u64,
}

const NOTHING: ModelInfo = ModelInfo {
    struct_size: 0,
    architecture: [0; 32],
    width: 0,
    height: 0,
    steps: 0,
    max_sequence_length: 0,
    guidance: 0.0,
    cfg_scale: 0.0,
    takes_guidance: 0,
    latent_channels: 0,
    file_size: 0,
    parameters: 0,
};
versioned!(ModelInfo, "pinhole_model_info", size_of::<ModelInfo>(), NOTHING);

impl Files {
    /// The source that these files make up.
    ///
    /// # Safety
    /// The header's contract for every member.
    pub(crate) unsafe fn open(&self) -> Result<Source, Failure> {
        // SAFETY: the caller's promise.
        let path = |text, name| unsafe { text::optional(text, name) }.map(|path| path.map(PathBuf::from));
        let base = path(self.base, "base")?;
        let named = [
            (self.transformer, "transformer"),
            (self.transformer_2, "transformer_2"),
            (self.unet, "unet"),
            (self.text_encoder, "text_encoder"),
            (self.text_encoder_2, "text_encoder_2"),
            (self.vae, "vae"),
            (self.tiny_vae, "tiny_vae"),
            (self.safety_checker, "safety_checker"),
            (self.tokenizer, "tokenizer"),
            (self.tokenizer_2, "tokenizer_2"),
        ];
        let mut parts = Parts::default();
        for (text, name) in named {
            if let Some(path) = path(text, name)? {
                parts.add(name, path);
            }
        }
        let mut source = match base {
            None if parts.is_empty() => {
                let hint = "set base, or transformer, text_encoder, text_encoder_2 and vae";
                return Err(Failure::argument("pinhole_files: expected a model or its parts, found neither", hint));
            }
            Some(base) if parts.is_empty() => Source::open(&base)?,
            base => Source::assemble(base.as_deref().map(Source::open).transpose()?, &parts)?,
        };
        if let Some(path) = path(self.scheduler_config, "scheduler_config")? {
            source.set_scheduler(&path)?;
        }
        Ok(source)
    }

    /// What the model is opened with beside its own files.
    ///
    /// # Safety
    /// The header's contract for every member.
    unsafe fn additions(&self) -> Result<Additions, Failure> {
        if self.loras.is_null() && self.lora_count > 0 {
            return Err(Failure::null("loras"));
        }
        let (mut loras, mut loras_high, mut loras_low) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..self.lora_count {
            // SAFETY: the caller promises `lora_count` texts, and as many strengths and experts unless there are none.
            let (path, strength, expert) = unsafe {
                let strength = if self.lora_strengths.is_null() { 1.0 } else { *self.lora_strengths.add(i) };
                let expert = if self.lora_experts.is_null() { 0 } else { *self.lora_experts.add(i) };
                (text::required(*self.loras.add(i), "loras")?, strength, expert)
            };
            let all = match expert {
                0 => &mut loras,
                1 => &mut loras_high,
                2 => &mut loras_low,
                other => {
                    let hint = "0 is for both experts, 1 for the first, 2 for the second";
                    return Err(Failure::argument(format!("lora_experts: expected 0 to 2, found {other}"), hint));
                }
            };
            all.push((PathBuf::from(path), strength));
        }
        if self.image_encoders.is_null() && self.image_encoder_count > 0 {
            return Err(Failure::null("image_encoders"));
        }
        let mut image_encoders = Vec::new();
        for i in 0..self.image_encoder_count {
            // SAFETY: the caller promises `image_encoder_count` texts.
            let path = unsafe { text::required(*self.image_encoders.add(i), "image_encoders") }?;
            image_encoders.push(PathBuf::from(path));
        }
        // SAFETY: the caller's promise.
        let path = |text, name| unsafe { text::optional(text, name) }.map(|path| path.map(PathBuf::from));
        let (redux, ip_adapter) = (path(self.redux, "redux")?, path(self.ip_adapter, "ip_adapter")?);
        if self.controls.is_null() && self.control_count > 0 {
            return Err(Failure::null("controls"));
        }
        let mut controls = Vec::new();
        for i in 0..self.control_count {
            // SAFETY: the caller promises `control_count` texts.
            let path = unsafe { text::required(*self.controls.add(i), "controls")? };
            controls.push(PathBuf::from(path));
        }
        // SAFETY: the caller's promise.
        let id_projector = unsafe { text::optional(self.id_projector, "id_projector") }?.map(PathBuf::from);
        let takes_id = self.takes_id != 0;
        // SAFETY: the caller's promise.
        let (embeddings, folder, refiner) = unsafe {
            let folder = text::optional(self.embeddings_folder, "embeddings_folder")?;
            (self.taught_words()?, folder, text::optional(self.refiner, "refiner")?)
        };
        // SAFETY: as above.
        let upscaler = unsafe { text::optional(self.upscaler, "upscaler") }?.map(PathBuf::from);
        let clip_skip = None;
        let zero_cond_t = match self.zero_cond_t {
            0 => None,
            given => Some(given > 0),
        };
        Ok(Additions {
            clip_skip,
            loras,
            redux,
            ip_adapter,
            image_encoders,
            controls,
            id_projector,
            takes_id,
            embeddings,
            embeddings_folder: folder.map(PathBuf::from),
            upscaler,
            refiner: refiner.map(PathBuf::from),
            loras_high,
            loras_low,
            zero_cond_t,
        })
    }

    /// The files of taught words, each with its word if that is named.
    ///
    /// # Safety
    /// The header's contract for every member.
    unsafe fn taught_words(&self) -> Result<Vec<(PathBuf, Option<String>)>, Failure> {
        if self.embeddings.is_null() && self.embedding_count > 0 {
            return Err(Failure::null("embeddings"));
        }
        let mut words = Vec::new();
        for i in 0..self.embedding_count {
            // SAFETY: the caller promises `embedding_count` texts, and as many words unless `embedding_words` is NULL. A word may be NULL.
            let (path, word) = unsafe {
                let word = if self.embedding_words.is_null() { std::ptr::null() } else { *self.embedding_words.add(i) };
                (text::required(*self.embeddings.add(i), "embeddings")?, text::optional(word, "embedding_words")?)
            };
            words.push((PathBuf::from(path), word.map(str::to_owned)));
        }
        Ok(words)
    }
}

impl Model {
    fn new(source: &Source, additions: &Additions) -> Result<Model, Failure> {
        let model = Arc::new(pipeline::open_with(source, additions)?);
        Ok(Model { model, bytes: source.bytes() as u64 })
    }

    fn info(&self) -> Result<ModelInfo, Failure> {
        let settings = pipeline::settings(&self.model, &Request::default())?;
        let networks = self.model.networks();
        let weights = networks.iter().flat_map(|network| network.model.manifest().iter());
        Ok(ModelInfo {
            architecture: text::fixed(self.model.family.name),
            width: settings.width as i32,
            height: settings.height as i32,
            steps: settings.steps as i32,
            max_sequence_length: settings.max_sequence_length as i32,
            guidance: settings.guidance.unwrap_or_default(),
            cfg_scale: settings.cfg_scale,
            takes_guidance: i32::from(settings.guidance.is_some()),
            latent_channels: self.model.autoencoder.channels() as i32,
            file_size: self.bytes,
            parameters: weights.map(|(_, weight)| weight.shape.elements() as u64).sum(),
            ..NOTHING
        })
    }
}

/// Opens what `source` gives, with the additions beside it.
///
/// # Safety
/// The header's contract for `out` and `error`.
unsafe fn open(
    out: *mut *mut Model,
    error: *mut *mut Error,
    source: impl FnOnce() -> Result<(Source, Additions), Failure>,
) -> i32 {
    let work = || {
        // SAFETY: the caller's promise.
        unsafe {
            handle::clear(out, "out")?;
            let (source, additions) = source()?;
            handle::give(out, Model::new(&source, &additions)?)
        }
    };
    // SAFETY: the caller's promise.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_open(path: *const c_char, out: *mut *mut Model, error: *mut *mut Error) -> i32 {
    // SAFETY: the header's contract.
    unsafe { open(out, error, || Ok((Source::open(Path::new(text::required(path, "path")?))?, Additions::default()))) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_open_builtin(out: *mut *mut Model, error: *mut *mut Error) -> i32 {
    // SAFETY: the header's contract.
    unsafe { open(out, error, || Ok((builtin::mini()?, Additions::default()))) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_files_init(files: *mut Files, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(files, struct_size) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_open_files(
    files: *const Files,
    out: *mut *mut Model,
    error: *mut *mut Error,
) -> i32 {
    let source = || {
        // SAFETY: the header's contract.
        unsafe {
            let files = options::read(files)?;
            Ok((files.open()?, files.additions()?))
        }
    };
    // SAFETY: the header's contract.
    unsafe { open(out, error, source) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_open_memory(
    data: *const c_void,
    size: usize,
    mode: i32,
    out: *mut *mut Model,
    error: *mut *mut Error,
) -> i32 {
    let source = || {
        if data.is_null() {
            return Err(Failure::null("data"));
        }
        if size > isize::MAX as usize {
            return Err(Failure::argument(format!("size: expected bytes that memory can hold, found {size}"), ""));
        }
        let map = match mode {
            0 => {
                // SAFETY: not NULL, and the header's contract makes `size` bytes readable during the call.
                Map::from_bytes(MEMORY, unsafe { std::slice::from_raw_parts(data.cast(), size) })?
            }
            1 => {
                // SAFETY: as above, and with this mode for as long as the model and its sessions live, who alone hold the
                // map: no one looks at the bytes after that.
                Map::from_static(MEMORY, unsafe { std::slice::from_raw_parts(data.cast(), size) })?
            }
            other => {
                let expected = "PINHOLE_MEMORY_COPY or PINHOLE_MEMORY_BORROW";
                return Err(pinhole::Error::option("mode", expected, other.to_string()).into());
            }
        };
        Ok((Source::from_map(map)?, Additions::default()))
    };
    // SAFETY: the header's contract.
    unsafe { open(out, error, source) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_get_info(
    model: *const Model,
    info: *mut ModelInfo,
    error: *mut *mut Error,
) -> i32 {
    // SAFETY: the header's contract.
    unsafe { entry::call(error, || options::write(info, handle::get(model, "model")?.info()?)) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_model_free(model: *mut Model) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(model) });
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_inspect(path: *const c_char, json: *mut *mut Buffer, error: *mut *mut Error) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let path = unsafe {
            handle::clear(json, "json")?;
            Path::new(text::required(path, "path")?)
        };
        let report = Report::of(path, &Subject::open(path)?);
        let bytes = serde_json::to_vec_pretty(&report)
            .map_err(|error| Failure::from(pinhole::Error::graph("inspect", error.to_string())))?;
        // SAFETY: the header's contract.
        unsafe { handle::give(json, Buffer::new(bytes)) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}
