//! Loaders: from a component on disk to a network with its weights found. Reads headers and configurations, no weights.

use std::path::Path;

use super::{Component, HasModel, Network, Networks, Part, Text, model_name, packing, strangers};
use crate::bind;
use crate::bind::Bound;
use crate::bind::alias::{self, Aliases, Kind};
use crate::bind::lora::{CONTROL_MARK, LowRank};
use crate::index::tensor_at;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::autoencoder_tiny::{self, TinyDecoder};
use crate::models::autoencoder_wan;
use crate::models::clip::{self, Clip, Output};
use crate::models::flux::flux2::{self, Flux2};
use crate::models::flux::redux::{self, Redux};
use crate::models::flux::{self, ControlNet, Flux, IpAdapter};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::models::layers::Activation;
use crate::models::missing_tensor;
use crate::models::qwen_image::{self, ControlConfig as QwenControlConfig, ControlNet as QwenControl, QwenImage};
use crate::models::qwen_vl::{self, VisionTower};
use crate::models::resampler::{self, Resampler};
use crate::models::safety_checker::{self, SafetyChecker};
use crate::models::t5::{self, T5};
use crate::models::unet::adapter::{self, T2iAdapter};
use crate::models::unet::control::{Config as UnetControlConfig, ControlNet as UnetControl};
use crate::models::unet::{
    self, IpAdapter as UnetIp, IpConfig as UnetIpConfig, Projector as UnetIpProjector, SideConfig, Unet,
};
use crate::models::upscaler::{self, Upscaler};
use crate::models::vision::{self, Vision};
use crate::models::wan::{self, Wan};
use crate::models::z_image::{self, ControlConfig as ZImageControlConfig, ControlNet as ZImageControl, ZImage};
use crate::stage::Model;
use crate::tensor::Shape;
use crate::{Error, Result};

macro_rules! has_model {
    ($($net:ty),*) => {
        $(impl HasModel for $net {
            fn model(&self) -> &Model {
                &self.model
            }

            fn model_mut(&mut self) -> &mut Model {
                &mut self.model
            }
        })*
    };
}
has_model!(
    Flux,
    Flux2,
    ControlNet,
    UnetControl,
    UnetIp,
    UnetIpProjector,
    T2iAdapter,
    Unet,
    ZImage,
    ZImageControl,
    QwenImage,
    Wan,
    QwenControl,
    VisionTower,
    Clip,
    T5,
    LanguageModel,
    Decoder,
    Encoder,
    autoencoder_wan::Decoder,
    autoencoder_wan::Encoder,
    autoencoder_wan::FilmDecoder,
    autoencoder_wan::FilmEncoder,
    autoencoder_wan::Whole,
    Vision,
    Redux,
    IpAdapter,
    Resampler,
    TinyDecoder,
    SafetyChecker,
    Upscaler
);

/// Shapes of a component's weights by canonical name.
pub(super) fn shapes<'a>(component: &'a Component, aliases: Aliases<'a>) -> impl Fn(&str) -> Option<Shape> + 'a {
    move |name| bind::shape_of(&component.index, &component.prefix, aliases, name)
}

/// Refuses a `component` that is like a network of `kind` and another, or packed in a way that is not read.
fn runnable(component: &Component, kind: &Kind) -> Result<()> {
    strangers::refuse(component, kind)?;
    packing::refuse(component)
}

/// What reading settings off the shapes of `component` returned; a weight that is missing has the name that its file would give it.
pub(super) fn read_off<C>(read: Result<C>, component: &Component, aliases: Aliases<'_>) -> Result<C> {
    let Component { index, prefix, origin, .. } = component;
    read.map_err(|error| match missing_tensor(&error) {
        Some(name) => bind::missing(index, prefix, aliases, name, origin),
        None => error,
    })
}

/// The FLUX transformer of `component`.
///
/// # Errors
/// [`Error::Mismatch`] if weights are missing or of another shape, [`Error::NotAModel`] for a network that is like it and not run
/// and for weights that are packed in a way that is not read, and what reading a configuration returns.
pub fn flux(component: &Component) -> Result<Part<Flux>> {
    runnable(component, &alias::FLUX)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux::Config::from_json(text, origin)?,
        None => {
            let config = flux::Config::from_shapes(shapes(component, &alias::flux), &component.origin);
            read_off(config, component, &alias::flux)?
        }
    };
    strangers::refuse_pictures_beside(&component.origin, config.in_channels, config.out_channels())?;
    let part = Part::new(Flux::new(&config)?, component, &alias::FLUX, alias::flux, &config)?;
    let part = part.without_strays(component)?;
    let derived = flux::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The FLUX.2 transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn flux2(component: &Component) -> Result<Part<Flux2>> {
    runnable(component, &alias::FLUX2)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux2::Config::from_json(text, origin)?,
        None => {
            let config = flux2::Config::from_shapes(shapes(component, &alias::flux2), &component.origin);
            read_off(config, component, &alias::flux2)?
        }
    };
    let part = Part::new(Flux2::new(&config)?, component, &alias::FLUX2, alias::flux2, &config)?;
    let part = part.without_strays(component)?;
    let derived = flux2::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The ControlNet of FLUX.1 in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn flux_control(component: &Component) -> Result<Part<ControlNet>> {
    let (kind, aliases) = (&alias::FLUX_CONTROL, alias::flux_control);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux::ControlConfig::from_json(text, origin, shapes(component, &aliases))?,
        None => {
            let config = flux::ControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(ControlNet::new(&config)?, component, kind, aliases, &config)?.without_strays(component)?;
    let derived = flux::ControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// `transformer` with `controls` beside it, and with the IP-Adapter `ip`, in one model.
///
/// # Errors
/// [`Error::Mismatch`] for one that does not fit the transformer.
pub fn flux_with(
    transformer: Part<Flux>,
    controls: &[Part<ControlNet>],
    ip: Option<&Part<IpAdapter>>,
) -> Result<Part<Flux>> {
    if controls.is_empty() && ip.is_none() {
        return Ok(transformer);
    }
    let config = transformer.net.config();
    for control in controls {
        let (own, origin) = (&control.net.config().net, control.bound.origin());
        for (key, found, expected) in [
            ("in_channels", own.in_channels, config.in_channels),
            ("num_attention_heads", own.num_attention_heads, config.num_attention_heads),
            ("attention_head_dim", own.attention_head_dim, config.attention_head_dim),
            ("joint_attention_dim", own.joint_attention_dim, config.joint_attention_dim),
            ("pooled_projection_dim", own.pooled_projection_dim, config.pooled_projection_dim),
        ] {
            if found != expected {
                let expected = format!("{expected}, as the transformer has");
                let error = Error::mismatch(origin, key, expected, found.to_string());
                return Err(error.with_hint("this ControlNet was trained for another model"));
            }
        }
        if own.axes_dims_rope != config.axes_dims_rope {
            let (expected, found) = (format!("{:?}", config.axes_dims_rope), format!("{:?}", own.axes_dims_rope));
            return Err(Error::mismatch(
                origin,
                "axes_dims_rope",
                format!("{expected}, as the transformer has"),
                found,
            ));
        }
    }
    let configs: Vec<flux::ControlConfig> = controls.iter().map(|control| control.net.config().clone()).collect();
    let net = Flux::with(config, &configs, ip.map(|ip| ip.net.config()))?;
    let prefixes: Vec<String> = (0..controls.len()).map(ControlNet::prefix).collect();
    let mut parts = vec![("", transformer.net.model().manifest(), &transformer.bound)];
    for (prefix, control) in prefixes.iter().zip(controls) {
        parts.push((prefix, control.net.model().manifest(), &control.bound));
    }
    if let Some(ip) = ip {
        parts.push(("", ip.net.model().manifest(), &ip.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    Ok(transformer.with_network(net, bound))
}

/// The same transformer with a first layer that reads `channels` numbers of each token: of those that are more, it makes nothing yet.
///
/// # Errors
/// [`Error::OutOfMemory`], and what declaring a network returns.
pub fn flux_reading(part: Part<Flux>, channels: usize) -> Result<Part<Flux>> {
    let config = part.net.config();
    let out_channels = Some(config.out_channels());
    let config = flux::Config { in_channels: channels, out_channels, ..config.clone() };
    part.widened(Flux::new(&config)?, "img_in.weight", &config)
}

/// The UNet of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn unet(component: &Component) -> Result<Part<Unet>> {
    runnable(component, &alias::UNET)?;
    let config = match &component.config {
        Some(Text { text, origin }) => unet::Config::from_json(text, origin)?,
        None => {
            // The original names do not depend on the layout; of diffusers', only the published one can be told.
            let layout = alias::UnetLayout { layers: vec![2; unet::MOST_LEVELS] };
            let aliases = |name: &str| alias::unet(&layout, name);
            read_off(unet::Config::from_shapes(shapes(component, &aliases), &component.origin), component, &aliases)?
        }
    };
    strangers::refuse_pictures_beside(&component.origin, config.in_channels, config.out_channels)?;
    let layout = alias::UnetLayout { layers: config.layers_by_level() };
    let aliases = move |name: &str| alias::unet(&layout, name);
    let part = Part::new(Unet::new(&config)?, component, &alias::UNET, aliases, &config)?.without_strays(component)?;
    let derived = unet::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The ControlNet of Stable Diffusion in `component`. What the shapes of a file without a configuration do not tell is as the UNet `beside`
/// has it, if that has the same levels.
///
/// # Errors
/// As [`flux()`].
pub fn unet_control(component: &Component, beside: Option<&unet::Config>) -> Result<Part<UnetControl>> {
    let kind = &alias::UNET_CONTROL;
    runnable(component, kind)?;
    if is_control_lora(component) {
        let found = "it holds a control LoRA, which is a ControlNet only beside its UNet".to_owned();
        let hint = Some("use the file as it is: give it with --control beside Stable Diffusion XL".to_owned());
        return Err(Error::NotAModel { path: component.origin.clone(), found, hint });
    }
    // As with a UNet, of diffusers' layouts only the published one can be told.
    let unet = alias::UnetLayout { layers: vec![2; unet::MOST_LEVELS] };
    let hints = 2 * UnetControlConfig::default().conditioning_embedding_out_channels.len();
    let layout = alias::UnetControlLayout { unet, hints };
    let published = |name: &str| alias::unet_control(&layout, name);
    let config = match &component.config {
        Some(Text { text, origin }) => {
            let config = UnetControlConfig::from_json(text, origin, shapes(component, &published));
            read_off(config, component, &published)?
        }
        None => {
            let aliases = published;
            let config = UnetControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            let config = read_off(config, component, &aliases)?;
            beside.map_or(config.clone(), |beside| config.like(beside))
        }
    };
    let unet = alias::UnetLayout { layers: config.net.layers_by_level() };
    let layout = alias::UnetControlLayout { unet, hints: 2 * config.conditioning_embedding_out_channels.len() };
    let net = UnetControl::new(&config)?;
    let part = Part::new(net, component, kind, move |name: &str| alias::unet_control(&layout, name), &config)?;
    let part = part.without_strays(component)?;
    let derived = UnetControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// Whether `component` is a control LoRA, which is a ControlNet beside a UNet alone.
pub fn is_control_lora(component: &Component) -> bool {
    let Component { index, prefix, .. } = component;
    [prefix.as_str(), ""].iter().any(|prefix| {
        let name = format!("{prefix}{CONTROL_MARK}");
        // The mark is a tensor without numbers in the published files.
        index.has(&name) || index.other(&name).is_some()
    })
}

/// The IP-Adapter of Stable Diffusion in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn unet_ip(component: &Component) -> Result<Part<UnetIp>> {
    runnable(component, &alias::UNET_IP)?;
    let config = UnetIpConfig::from_shapes(shapes(component, &alias::unet_ip), &component.origin);
    let config = read_off(config, component, &alias::unet_ip)?;
    Part::new(UnetIp::new(&config)?, component, &alias::UNET_IP, alias::unet_ip, &config)
}

/// What makes tokens for `adapter`, with its weights.
///
/// # Errors
/// What declaring a network returns.
pub fn unet_ip_projector(adapter: &Part<UnetIp>) -> Result<Part<UnetIpProjector>> {
    let net = UnetIpProjector::new(adapter.net.config())?;
    let bound = Bound::joined(net.model.manifest(), &[("", adapter.net.model().manifest(), &adapter.bound)])?;
    Ok(adapter.beside(net, bound, alias::unet_ip))
}

/// The T2I-Adapter in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn t2i_adapter(component: &Component) -> Result<Part<T2iAdapter>> {
    let kind = &alias::T2I_ADAPTER;
    runnable(component, kind)?;
    let own = component.index.names().filter_map(|name| name.strip_prefix(component.prefix.as_str()));
    let numbered = |blocks| alias::T2iNumbers::of(own.clone(), blocks);
    let config = match &component.config {
        Some(Text { text, origin }) => adapter::Config::from_json(text, origin)?,
        None => {
            // TencentARC's names depend on how many blocks there are: as published.
            let numbers = numbered(adapter::Config::default().num_res_blocks);
            let aliases = |name: &str| alias::t2i_adapter(numbers, name);
            let config = adapter::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let numbers = numbered(config.num_res_blocks);
    let net = T2iAdapter::new(&config)?;
    let part = Part::new(net, component, kind, move |name: &str| alias::t2i_adapter(numbers, name), &config)?;
    let derived = adapter::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// What runs beside a UNet and follows a picture.
pub enum Side {
    /// A ControlNet.
    Net(Part<UnetControl>),
    /// One that shares weights with the UNet, and has changes of them.
    Lora(Part<UnetControl>, LowRank),
    /// A T2I-Adapter.
    Adapter(Part<T2iAdapter>),
}

impl Side {
    /// What it is.
    pub fn config(&self) -> SideConfig {
        match self {
            Side::Net(net) | Side::Lora(net, _) => SideConfig::Net(Box::new(net.net.config().clone())),
            Side::Adapter(adapter) => SideConfig::Adapter(adapter.net.config().clone()),
        }
    }

    /// Where its weights are.
    pub fn bound(&self) -> &Bound {
        match self {
            Side::Net(net) | Side::Lora(net, _) => &net.bound,
            Side::Adapter(adapter) => &adapter.bound,
        }
    }

    fn model(&self) -> &Model {
        match self {
            Side::Net(net) | Side::Lora(net, _) => net.net.model(),
            Side::Adapter(adapter) => adapter.net.model(),
        }
    }
}

/// `unet` with `sides` beside it, and with the IP-Adapter `ip`, in one model.
///
/// # Errors
/// [`Error::Mismatch`] for one that does not fit the UNet.
pub fn unet_with(unet: Part<Unet>, sides: &[Side], ip: Option<&Part<UnetIp>>) -> Result<Part<Unet>> {
    if sides.is_empty() && ip.is_none() {
        return Ok(unet);
    }
    if let Some(ip) = ip {
        ip.net.config().fit(ip.bound.origin(), unet.net.config())?;
    }
    let mut configs = Vec::with_capacity(sides.len());
    for side in sides {
        let config = side.config();
        match &config {
            SideConfig::Net(config) => unet::fit_control(unet.net.config(), config, side.bound().origin())?,
            SideConfig::Adapter(config) => unet::fit_adapter(unet.net.config(), config, side.bound().origin())?,
        }
        configs.push(config);
    }
    let net = Unet::with(unet.net.config(), &configs, ip.map(|ip| ip.net.config()))?;
    let prefixes: Vec<String> = (0..sides.len()).map(UnetControl::prefix).collect();
    let mut parts = vec![("", unet.net.model().manifest(), &unet.bound)];
    for (prefix, side) in prefixes.iter().zip(sides) {
        parts.push((prefix, side.model().manifest(), side.bound()));
    }
    if let Some(ip) = ip {
        parts.push(("", ip.net.model().manifest(), &ip.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    let mut unet = unet.with_network(net, bound);
    for (prefix, side) in prefixes.iter().zip(sides) {
        if let Side::Lora(_, changes) = side {
            changes.attach(prefix, &mut unet.target())?;
        }
    }
    Ok(unet)
}

/// CLIP's text encoder, as it gives its last hidden states, and its configuration.
///
/// # Errors
/// As [`flux()`].
pub fn clip(component: &Component) -> Result<(Part<Clip>, clip::Config)> {
    clip_with(component, Output::LAST)
}

/// CLIP's text encoder, as it gives `output`, and its configuration.
///
/// # Errors
/// As [`flux()`]; [`Error::Option`] if more layers are skipped than there are.
pub fn clip_with(component: &Component, output: Output) -> Result<(Part<Clip>, clip::Config)> {
    runnable(component, &alias::CLIP)?;
    let config = match &component.config {
        Some(Text { text, origin }) => clip::Config::from_json(text, origin)?,
        None => {
            let config = clip::Config::from_shapes(shapes(component, &alias::clip), &component.origin);
            let config = read_off(config, component, &alias::clip)?;
            match alias::is_open_clip(&component.index, &component.prefix) {
                true => clip::Config { hidden_act: Activation::Gelu, ..config },
                false => config,
            }
        }
    };
    let published = config.clone();
    let config = match output.shortened && component.config.is_none() && is_whole_open_clip(component, &config) {
        true => clip::Config { num_hidden_layers: config.num_hidden_layers - 1, ..config },
        false => config,
    };
    if output.skipped >= config.num_hidden_layers {
        let expected = format!("less than the {} layers of CLIP", config.num_hidden_layers);
        return Err(Error::option("--clip-skip", expected, output.skipped.to_string()));
    }
    // A network that projects nothing has no such width.
    let config = if output.projected { config } else { clip::Config { projection_dim: None, ..config } };
    let part = Part::new(Clip::with(&config, output)?, component, &alias::CLIP, alias::clip, &config)?;
    // Layers that are skipped are no strays.
    let whole = Clip::with(&published, Output { skipped: 0, projected: false, ..output })?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = clip::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}

/// Layers and width of OpenCLIP's ViT-H, as trained.
const VIT_H: [usize; 2] = [24, 1024];

/// Whether `component` is a text encoder of OpenCLIP with all its layers, by its names or, under those of transformers, by its
/// sizes.
fn is_whole_open_clip(component: &Component, config: &clip::Config) -> bool {
    let named = alias::is_open_clip(&component.index, &component.prefix) && config.num_hidden_layers > 1;
    named || [config.num_hidden_layers, config.hidden_size] == VIT_H
}

/// The encoder of T5 in `component`, and its configuration.
///
/// # Errors
/// As [`flux()`]; umt5 is another.
pub fn t5(component: &Component) -> Result<(Part<T5>, t5::Config)> {
    let (part, config) = t5_of(component, &alias::T5)?;
    match config.is_umt5() {
        true => {
            Err(strangers::refusal(&component.origin, alias::UMT5.what, "take T5 v1.1 XXL: t5xxl_fp16.safetensors"))
        }
        false => Ok((part, config)),
    }
}

/// The encoder of umt5 in `component`, and its configuration.
///
/// # Errors
/// As [`flux()`]; T5 is another.
pub fn umt5(component: &Component) -> Result<(Part<T5>, t5::Config)> {
    let (part, config) = t5_of(component, &alias::UMT5)?;
    if config.is_umt5() {
        return Ok((part, config));
    }
    let error = Error::mismatch(&component.origin, "model_type", "umt5", config.model_type);
    Err(error.with_hint("take umt5-xxl: umt5_xxl_fp16.safetensors"))
}

fn t5_of(component: &Component, kind: &'static Kind) -> Result<(Part<T5>, t5::Config)> {
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => t5::Config::from_json(text, origin)?,
        None => {
            let config = t5::Config::from_shapes(shapes(component, &alias::t5), &component.origin);
            read_off(config, component, &alias::t5)?
        }
    };
    let part = Part::new(T5::new(&config)?, component, kind, alias::t5, &config)?.without_strays(component)?;
    let derived = t5::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}

/// The language model of `component`, as it gives `taps` of its layers, and its configuration.
///
/// # Errors
/// As [`flux()`]; [`Error::Mismatch`] if it has fewer layers than are tapped.
pub fn language_model(
    component: &Component,
    taps: fn(usize) -> Taps,
) -> Result<(Part<LanguageModel>, language_model::Config)> {
    runnable(component, &alias::LANGUAGE_MODEL)?;
    let aliases = alias::language_model;
    let config = match &component.config {
        Some(Text { text, origin }) => language_model::Config::from_json(text, origin)?,
        None => {
            let config = language_model::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let (layers, origin) = (config.num_hidden_layers, &component.origin);
    let taps = taps(layers);
    let last = taps.after.last().copied().unwrap_or(0);
    if !(1..=layers).contains(&last) {
        let expected = format!("at least {} layers, since a later one is read", last.max(2));
        return Err(Error::mismatch(origin, "num_hidden_layers", expected, layers.to_string()));
    }
    let part = Part::new(LanguageModel::new(&config, &taps)?, component, &alias::LANGUAGE_MODEL, aliases, &config)?;
    // Layers that are not read are no strays.
    let whole = LanguageModel::new(&config, &Taps { after: vec![layers], normalised: true })?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = language_model::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}

/// The Z-Image transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn z_image(component: &Component) -> Result<Part<ZImage>> {
    runnable(component, &alias::Z_IMAGE)?;
    let config = match &component.config {
        Some(Text { text, origin }) => z_image::Config::from_json(text, origin)?,
        None => {
            let config = z_image::Config::from_shapes(shapes(component, &alias::z_image), &component.origin);
            read_off(config, component, &alias::z_image)?
        }
    };
    let part = Part::new(ZImage::new(&config)?, component, &alias::Z_IMAGE, alias::z_image, &config)?;
    let part = part.without_strays(component)?;
    let derived = z_image::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// Whether the refiners of the ControlNet of Z-Image in `component` were never trained, so that its other layers refine: in files of 2.0.
fn refines_with_layers(component: &Component) -> bool {
    let first = component.index.get(&format!("{}{}", component.prefix, z_image::REFINERS_FIRST));
    first.is_some_and(|first| first.bytes().iter().all(|&byte| byte == 0))
}

/// The ControlNet of Z-Image in `component`. What the shapes of a file without a configuration do not tell is as published, beside a model
/// like `beside`.
///
/// # Errors
/// As [`flux()`].
pub fn z_image_control(component: &Component, beside: Option<&z_image::Config>) -> Result<Part<ZImageControl>> {
    let (kind, aliases) = (&alias::Z_IMAGE_CONTROL, alias::z_image_control);
    runnable(component, kind)?;
    let published = z_image::Config::default();
    let config = match &component.config {
        Some(Text { text, origin }) => ZImageControlConfig::from_json(text, origin)?,
        None => {
            let (reuses, beside) = (refines_with_layers(component), beside.unwrap_or(&published));
            let shapes = shapes(component, &aliases);
            let config = ZImageControlConfig::from_shapes(shapes, reuses, beside, &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(ZImageControl::new(&config)?, component, kind, aliases, &config)?;
    let derived = ZImageControlConfig::from_shapes(|name| part.shape(name), false, &published, Path::new("")).ok();
    // A file of 2.0 rightly has refiners that are not read.
    let part = match config.add_control_noise_refiner {
        Some(z_image::Refines::ControlLayers) => part,
        _ => part.without_strays(component)?,
    };
    Ok(part.compared(derived))
}

/// `transformer` with the ControlNet `control` beside it, in one model.
///
/// # Errors
/// [`Error::Mismatch`] if it does not fit the transformer.
pub fn z_image_with(transformer: Part<ZImage>, control: Option<&Part<ZImageControl>>) -> Result<Part<ZImage>> {
    let Some(control) = control else { return Ok(transformer) };
    let (config, own) = (transformer.net.config(), control.net.config());
    own.fit(config, control.bound.origin())?;
    let net = ZImage::with(config, Some(own))?;
    let manifest = control.net.model().manifest();
    let bound = Bound::joined(
        net.model.manifest(),
        &[
            ("", transformer.net.model().manifest(), &transformer.bound),
            (ZImageControl::PREFIX, manifest, &control.bound),
            (ZImageControl::REFINING, manifest, &control.bound),
        ],
    )?;
    Ok(transformer.with_network(net, bound))
}

/// Whether the Qwen-Image transformer of `component`, which brings no configuration, modulates references as at time 0: a mark in the
/// file says so, or its name.
fn is_of_zero(component: &Component) -> bool {
    let is_marked = component.index.has(&format!("{}__index_timestep_zero__", component.prefix));
    is_marked || model_name(&component.origin).contains("2511")
}

/// The Wan transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn wan(component: &Component) -> Result<Part<Wan>> {
    runnable(component, &alias::WAN)?;
    // The publisher's own `config.json` says less than the shapes do.
    let config = component.config.as_ref().filter(|config| config.text.contains("attention_head_dim"));
    let config = match config {
        Some(Text { text, origin }) => wan::Config::from_json(text, origin)?,
        None => {
            let config = wan::Config::from_shapes(shapes(component, &alias::wan), &component.origin);
            read_off(config, component, &alias::wan)?
        }
    };
    let part = Part::new(Wan::new(&config)?, component, &alias::WAN, alias::wan, &config)?.without_strays(component)?;
    let derived = wan::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The Qwen-Image transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn qwen_image(component: &Component) -> Result<Part<QwenImage>> {
    runnable(component, &alias::QWEN_IMAGE)?;
    let config = match &component.config {
        Some(Text { text, origin }) => qwen_image::Config::from_json(text, origin)?,
        None => {
            let config = qwen_image::Config::from_shapes(shapes(component, &alias::qwen_image), &component.origin);
            let config = read_off(config, component, &alias::qwen_image)?;
            qwen_image::Config { zero_cond_t: is_of_zero(component), ..config }
        }
    };
    let part = Part::new(QwenImage::new(&config)?, component, &alias::QWEN_IMAGE, alias::qwen_image, &config)?;
    let part = part.without_strays(component)?;
    let derived = qwen_image::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The same transformer, which modulates references as at time 0, or does not.
///
/// # Errors
/// What declaring a network returns.
pub fn qwen_image_of_zero(part: Part<QwenImage>, zero_cond_t: bool) -> Result<Part<QwenImage>> {
    let config = qwen_image::Config { zero_cond_t, ..part.net.config().clone() };
    Ok(part.with_settings(QwenImage::new(&config)?, &config))
}

/// The ControlNet of Qwen-Image in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn qwen_control(component: &Component) -> Result<Part<QwenControl>> {
    let (kind, aliases) = (&alias::QWEN_CONTROL, alias::qwen_control);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => QwenControlConfig::from_json(text, origin, shapes(component, &aliases))?,
        None => {
            let config = QwenControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(QwenControl::new(&config)?, component, kind, aliases, &config)?.without_strays(component)?;
    let derived = QwenControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// `transformer` with `controls` beside it, in one model.
///
/// # Errors
/// [`Error::Mismatch`] for one that does not fit the transformer.
pub fn qwen_image_with(transformer: Part<QwenImage>, controls: &[Part<QwenControl>]) -> Result<Part<QwenImage>> {
    if controls.is_empty() {
        return Ok(transformer);
    }
    let (config, mut configs) = (transformer.net.config(), Vec::with_capacity(controls.len()));
    for control in controls {
        control.net.config().fit(config, control.bound.origin())?;
        configs.push(control.net.config().clone());
    }
    let net = QwenImage::with(config, &configs)?;
    let prefixes: Vec<String> = (0..controls.len()).map(QwenControl::prefix).collect();
    let mut parts = vec![("", transformer.net.model().manifest(), &transformer.bound)];
    for (prefix, control) in prefixes.iter().zip(controls) {
        parts.push((prefix, control.net.model().manifest(), &control.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    Ok(transformer.with_network(net, bound))
}

/// The vision tower of Qwen2.5-VL in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn qwen_vl(component: &Component) -> Result<Part<VisionTower>> {
    runnable(component, &alias::QWEN_VL_VISION)?;
    let config = match &component.config {
        Some(Text { text, origin }) => qwen_vl::Config::from_json(text, origin)?,
        None => {
            let config = qwen_vl::Config::from_shapes(shapes(component, &alias::qwen_vl), &component.origin);
            read_off(config, component, &alias::qwen_vl)?
        }
    };
    let part = Part::new(VisionTower::new(&config)?, component, &alias::QWEN_VL_VISION, alias::qwen_vl, &config)?;
    let derived = qwen_vl::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The resampler of `component`, and its configuration.
///
/// # Errors
/// As [`flux()`].
pub fn resampler(component: &Component) -> Result<(Part<Resampler>, resampler::Config)> {
    runnable(component, &alias::RESAMPLER)?;
    let config = resampler::Config::from_shapes(shapes(component, &alias::resampler), &component.origin);
    let config = read_off(config, component, &alias::resampler)?;
    let net = Resampler::new(&config)?;
    let part = Part::new(net, component, &alias::RESAMPLER, alias::resampler, &config)?.without_strays(component)?;
    Ok((part.compared(Some(&config)), config))
}

/// A KL autoencoder: from latents to pictures, and back if the file has the weights.
pub struct AutoencoderKl {
    /// From latents to pictures.
    pub decoder: Part<Decoder>,
    /// From pictures to latents. Files for text to image sometimes come without it.
    pub encoder: Option<Part<Encoder>>,
    /// The settings.
    pub config: autoencoder_kl::Config,
}

impl Networks for AutoencoderKl {
    fn networks(&self) -> Vec<Network<'_>> {
        let mut networks = self.decoder.networks();
        networks.extend(self.encoder.iter().flat_map(Networks::networks));
        networks
    }
}

/// The KL autoencoder of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn autoencoder_kl(component: &Component) -> Result<AutoencoderKl> {
    autoencoder_kl_of(component, None)
}

/// The KL autoencoder of `component`, with latents that are multiplied by `scale`, if it is given and the file does not say.
///
/// # Errors
/// As [`flux()`].
pub fn autoencoder_kl_of(component: &Component, scale: Option<f32>) -> Result<AutoencoderKl> {
    runnable(component, &alias::AUTOENCODER_KL)?;
    let config = match &component.config {
        Some(Text { text, origin }) => with_statistics(autoencoder_kl::Config::from_json(text, origin)?, component),
        None => {
            let aliases = alias::autoencoder_kl(alias::autoencoder_levels(&component.index, &component.prefix));
            let config = autoencoder_kl::Config::from_shapes(shapes(component, &aliases), &component.origin);
            let config = read_off(config, component, &aliases)?;
            autoencoder_kl::Config { scaling_factor: scale.unwrap_or(config.scaling_factor), ..config }
        }
    };
    let (levels, kind) = (config.levels(), &alias::AUTOENCODER_KL);
    let decoder = Part::new(Decoder::new(&config)?, component, kind, alias::autoencoder_kl(levels), &config)?;
    let decoder = decoder.without_strays(component)?;
    let encoder = match shapes(component, &alias::autoencoder_kl(levels))("encoder.conv_in.weight") {
        Some(_) => {
            let encoder = Part::new(Encoder::new(&config)?, component, kind, alias::autoencoder_kl(levels), &config)?;
            Some(encoder.without_strays(component)?)
        }
        None => None,
    };
    Ok(AutoencoderKl { decoder, encoder, config })
}

/// The causal autoencoder: from latents to pictures, and back if the file has the weights.
pub struct AutoencoderCausal {
    /// From latents to pictures.
    pub decoder: Part<autoencoder_wan::Decoder>,
    /// From pictures to latents.
    pub encoder: Option<Part<autoencoder_wan::Encoder>>,
    /// The same for films, if it was opened for them.
    pub film: Option<Film>,
    /// The settings.
    pub config: autoencoder_wan::Config,
}

/// The causal autoencoder for films.
pub struct Film {
    /// From latents to frames.
    pub decoder: Part<autoencoder_wan::FilmDecoder>,
    /// From frames to latents.
    pub encoder: Option<Part<autoencoder_wan::FilmEncoder>>,
    /// All weights, each once, of both directions.
    weights: Vec<Part<autoencoder_wan::Whole>>,
}

impl Networks for AutoencoderCausal {
    fn networks(&self) -> Vec<Network<'_>> {
        if let Some(film) = &self.film {
            return film.weights.iter().flat_map(Networks::networks).collect();
        }
        let mut networks = self.decoder.networks();
        networks.extend(self.encoder.iter().flat_map(Networks::networks));
        networks
    }
}

/// The settings of the causal autoencoder of `component`.
fn causal_config(component: &Component) -> Result<autoencoder_wan::Config> {
    runnable(component, &alias::AUTOENCODER_WAN)?;
    match &component.config {
        Some(Text { text, origin }) => autoencoder_wan::Config::from_json(text, origin),
        None => {
            let aliases = alias::autoencoder_wan(alias::autoencoder_wan_blocks(&component.index, &component.prefix));
            let config = autoencoder_wan::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)
        }
    }
}

/// The causal autoencoder of `component`, for pictures.
///
/// # Errors
/// As [`flux()`].
pub fn autoencoder_causal(component: &Component) -> Result<AutoencoderCausal> {
    let (config, kind) = (causal_config(component)?, &alias::AUTOENCODER_WAN);
    let aliases = || alias::autoencoder_wan(config.num_res_blocks + 1);
    let decoder = Part::new(autoencoder_wan::Decoder::new(&config)?, component, kind, aliases(), &config)?;
    let decoder = decoder.without_strays(component)?;
    let encoder = match shapes(component, &aliases())("encoder.conv1.bias") {
        Some(_) => {
            let encoder = Part::new(autoencoder_wan::Encoder::new(&config)?, component, kind, aliases(), &config)?;
            Some(encoder.without_strays(component)?)
        }
        None => None,
    };
    Ok(AutoencoderCausal { decoder, encoder, film: None, config })
}

/// The causal autoencoder of `component`, for films, and for pictures too.
///
/// # Errors
/// As [`flux()`]; [`Error::Mismatch`] if its kernels are those of pictures, or a latent frame is not four frames.
pub fn autoencoder_causal_of_films(component: &Component) -> Result<AutoencoderCausal> {
    let (config, kind) = (causal_config(component)?, &alias::AUTOENCODER_WAN);
    let aliases = || alias::autoencoder_wan(config.num_res_blocks + 1);
    config.validate_films(&component.origin)?;
    refuse_flat(component, &aliases(), &config)?;
    let weights = |whole: autoencoder_wan::Whole| {
        Part::new(whole, component, kind, aliases(), &config)?.without_strays(component)
    };
    let whole = weights(autoencoder_wan::Whole::decoder(&config)?)?;
    let decoder = beside(&whole, autoencoder_wan::Decoder::new(&config)?, aliases())?;
    let film = beside(&whole, autoencoder_wan::FilmDecoder::new(&config)?, aliases())?;
    let mut film = Film { decoder: film, encoder: None, weights: vec![whole] };
    let mut encoder = None;
    if shapes(component, &aliases())("encoder.conv1.bias").is_some() {
        let whole = weights(autoencoder_wan::Whole::encoder(&config)?)?;
        encoder = Some(beside(&whole, autoencoder_wan::Encoder::new(&config)?, aliases())?);
        film.encoder = Some(beside(&whole, autoencoder_wan::FilmEncoder::new(&config)?, aliases())?);
        film.weights.push(whole);
    }
    Ok(AutoencoderCausal { decoder, encoder, film: Some(film), config })
}

/// `net`, whose weights are all among those of `whole`.
fn beside<N: HasModel>(
    whole: &Part<autoencoder_wan::Whole>,
    net: N,
    aliases: impl Fn(&str) -> Vec<alias::Alternative> + Send + Sync + 'static,
) -> Result<Part<N>> {
    let bound = Bound::joined(net.model().manifest(), &[("", whole.net.model.manifest(), &whole.bound)])?;
    Ok(whole.beside(net, bound, aliases))
}

/// Refuses the autoencoder of `component` if its kernels have no planes: some files are made for Qwen-Image alone.
fn refuse_flat(component: &Component, aliases: Aliases<'_>, config: &autoencoder_wan::Config) -> Result<()> {
    let Component { index, prefix, origin, .. } = component;
    let (kernel, bias) = ("decoder.conv1.weight", "decoder.conv1.bias");
    let sizes = (shapes(component, aliases)(kernel), shapes(component, aliases)(bias));
    let (Some(shape), Some(outputs)) = sizes else { return Ok(()) };
    let is_flat = shape.elements() == 9 * config.z_dim * outputs.elements();
    if !is_flat || index.has(&format!("{prefix}{kernel}.0")) {
        return Ok(());
    }
    let error = Error::mismatch(origin, tensor_at(kernel), "a kernel over three frames", format!("shape {shape}"));
    Err(error.with_hint("this autoencoder is for pictures alone: take Wan's own, wan_2.1_vae.safetensors"))
}

/// `config` of an autoencoder whose file normalises latents, though its settings do not say so.
fn with_statistics(config: autoencoder_kl::Config, component: &Component) -> autoencoder_kl::Config {
    let has_statistics = shapes(component, &alias::autoencoder_kl(config.levels()))("bn.running_mean").is_some();
    let eps = config.batch_norm_eps.or(has_statistics.then_some(autoencoder_kl::BATCH_NORM_EPS));
    autoencoder_kl::Config { batch_norm_eps: eps, ..config }
}

/// The vision tower of `component`, which is one of `family`, as it gives `output`.
///
/// # Errors
/// As [`flux()`].
pub fn vision(component: &Component, family: vision::Family, output: vision::Output) -> Result<Part<Vision>> {
    let kind = match family {
        vision::Family::Clip => &alias::CLIP_VISION,
        vision::Family::Siglip => &alias::SIGLIP_VISION,
    };
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => vision::Config::from_json(text, origin, family)?,
        None => {
            let config = vision::Config::from_shapes(shapes(component, &alias::vision), &component.origin, family);
            read_off(config, component, &alias::vision)?
        }
    };
    if output == (vision::Output::Pooled { projected: true }) && config.projection_dim.is_none() {
        let name = "visual_projection.weight";
        return Err(bind::missing(&component.index, &component.prefix, &alias::vision, name, &component.origin));
    }
    let part = Part::new(Vision::new(&config, output)?, component, kind, alias::vision, &config)?;
    // Layers that are skipped are no strays.
    let whole = Vision::new(&config, vision::Output::LAST)?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = vision::Config::from_shapes(|name| part.shape(name), Path::new(""), family).ok();
    Ok(part.compared(derived))
}

/// The vision tower of `component` with all that its file has.
///
/// # Errors
/// As [`flux()`].
pub fn whole_vision(component: &Component, family: vision::Family) -> Result<Part<Vision>> {
    let has = |name| shapes(component, &alias::vision)(name).is_some();
    let output = match family {
        vision::Family::Clip => vision::Output::Pooled { projected: has("visual_projection.weight") },
        vision::Family::Siglip if has("vision_model.head.probe") => vision::Output::Pooled { projected: false },
        vision::Family::Siglip => vision::Output::LAST,
    };
    vision(component, family, output)
}

/// The safety checker of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn safety_checker(component: &Component) -> Result<Part<SafetyChecker>> {
    let (kind, aliases) = (&alias::SAFETY_CHECKER, &alias::safety_checker);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => safety_checker::Config::from_json(text, origin, shapes(component, aliases)),
        None => safety_checker::Config::from_shapes(shapes(component, aliases), &component.origin),
    };
    let config = read_off(config, component, aliases)?;
    if config.vision.projection_dim.is_none() {
        let name = "visual_projection.weight";
        return Err(bind::missing(&component.index, &component.prefix, aliases, name, &component.origin));
    }
    let net = SafetyChecker::new(&config)?;
    let part = Part::new(net, component, kind, alias::safety_checker, &config)?.without_strays(component)?;
    let derived = safety_checker::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The embedder of FLUX.1 Redux in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn redux(component: &Component) -> Result<Part<Redux>> {
    runnable(component, &alias::REDUX)?;
    let config = match &component.config {
        Some(Text { text, origin }) => redux::Config::from_json(text, origin)?,
        None => {
            let config = redux::Config::from_shapes(shapes(component, &alias::redux), &component.origin);
            read_off(config, component, &alias::redux)?
        }
    };
    let part = Part::new(Redux::new(&config)?, component, &alias::REDUX, alias::redux, &config)?;
    let derived = redux::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The IP-Adapter of FLUX.1 in `component`, for a transformer that `beside` describes.
///
/// # Errors
/// As [`flux()`]; [`Error::Mismatch`] for an adapter of another transformer.
pub fn flux_ip(component: &Component, beside: &flux::Config) -> Result<Part<IpAdapter>> {
    runnable(component, &alias::FLUX_IP)?;
    let double = beside.num_layers;
    let whole = move |name: &str| alias::flux_ip(double, 0, name);
    let config = flux::IpConfig::from_shapes(shapes(component, &whole), &component.origin, beside);
    let config = read_off(config, component, &whole)?;
    let parts = config.parts();
    let aliases = move |name: &str| alias::flux_ip(double, parts, name);
    Part::new(IpAdapter::new(&config)?, component, &alias::FLUX_IP, aliases, &config)
}

/// A tiny autoencoder: from latents to pictures. Nothing is encoded with it.
pub struct AutoencoderTiny {
    /// From latents to pictures.
    pub decoder: Part<TinyDecoder>,
    /// The settings.
    pub config: autoencoder_tiny::Config,
}

impl Networks for AutoencoderTiny {
    fn networks(&self) -> Vec<Network<'_>> {
        self.decoder.networks()
    }
}

/// The tiny autoencoder of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn autoencoder_tiny(component: &Component) -> Result<AutoencoderTiny> {
    runnable(component, &alias::AUTOENCODER_TINY)?;
    let config = match &component.config {
        Some(Text { text, origin }) => autoencoder_tiny::Config::from_json(text, origin)?,
        None => {
            let aliases = &alias::autoencoder_tiny;
            let config = autoencoder_tiny::Config::from_shapes(shapes(component, aliases), &component.origin);
            read_off(config, component, aliases)?
        }
    };
    let kind = &alias::AUTOENCODER_TINY;
    let decoder = Part::new(TinyDecoder::new(&config)?, component, kind, alias::autoencoder_tiny, &config)?;
    let decoder = decoder.without_strays(component)?;
    let derived = autoencoder_tiny::Config::from_shapes(|name| decoder.shape(name), Path::new("")).ok();
    Ok(AutoencoderTiny { decoder: decoder.compared(derived), config })
}

/// The network of `component` that makes pictures larger.
///
/// # Errors
/// As [`flux()`].
pub fn upscaler(component: &Component) -> Result<Part<Upscaler>> {
    runnable(component, &alias::UPSCALER)?;
    let layout = alias::UpscalerLayout::of(&component.index, &component.prefix);
    let aliases = alias::upscaler(layout);
    let config = upscaler::Config::from_shapes(shapes(component, &aliases), &component.origin);
    let config = read_off(config, component, &aliases)?;
    let part = Part::new(Upscaler::new(&config)?, component, &alias::UPSCALER, aliases, &config)?;
    let part = part.without_strays(component)?;
    // Others are built upon these networks, and have a few layers more.
    if let Some(more) = part.bound.unused().iter().find(|name| name.ends_with(".weight")) {
        let expected = "no weight beside those of ESRGAN or of Real-ESRGAN's compact network";
        return Err(Error::mismatch(&component.origin, tensor_at(more), expected, "one"));
    }
    let derived = upscaler::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}
