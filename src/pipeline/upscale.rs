//! Pictures that become larger, by a network of their own: no model is needed for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::generated::{PhaseMemory, Timings};
use super::machine::Machine;
use super::progress::{Event, Observer};
use super::request::MemoryOptions;
use super::run::{Run, finite, stage_runs};
use crate::bind::alias;
use crate::ggml::{CancelFlag, Device, Usage};
use crate::image::{CHANNELS, Filter, Image, MAX_PIXELS, MAX_SIDE};
use crate::models::upscaler;
use crate::plan::measure::Subject;
use crate::plan::{Component, Phase, Plan, Refusal, Runs, Turn, budget};
use crate::source::slot::UPSCALER;
use crate::source::{self, Network, Networks, Part, Place, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, processors};

/// The place of its network, which no model has.
pub(super) const PLACE: Place =
    Place::given(&UPSCALER, &alias::UPSCALER, |component| Ok(Box::new(networks::upscaler(component)?)));

/// The option that says how large a picture becomes.
const OUTSCALE: &str = "--outscale";

/// How much larger a picture may become.
const MOST_OUTSCALE: f64 = 64.0;

/// A network that makes pictures larger, whose weights are found. Only headers were read.
pub struct UpscaleModel {
    path: PathBuf,
    part: Part<upscaler::Upscaler>,
}

impl UpscaleModel {
    /// That in the file at `path`: safetensors, PyTorch's own, or GGUF, with the names of Real-ESRGAN or ESRGAN.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if there is none; [`Error::Mismatch`] if a weight is missing or has another shape.
    pub fn open(path: &Path) -> Result<UpscaleModel> {
        let part = networks::upscaler(&source::beside(path, &PLACE)?)?;
        Ok(UpscaleModel { path: path.to_owned(), part })
    }

    /// The place of such a network, which no model has.
    pub fn place() -> Place {
        PLACE
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that its weights are in.
    pub fn files(&self) -> Vec<PathBuf> {
        let networks = self.part.networks();
        let mut files = Vec::new();
        for (id, _) in self.part.net.model.manifest().iter() {
            for piece in networks.iter().flat_map(|network| network.bound.pieces(id)) {
                let path = piece.span().0.path();
                if !files.iter().any(|known| known == path) {
                    files.push(path.to_owned());
                }
            }
        }
        files
    }

    /// What it is.
    pub fn config(&self) -> &upscaler::Config {
        self.part.net.config()
    }

    /// By how much it makes a picture larger, each way.
    pub fn factor(&self) -> usize {
        self.config().factor()
    }

    /// Width and height of what becomes of a picture of `size`, resized to `outscale` times that in the end.
    ///
    /// # Errors
    /// [`Error::Option`] for a scale that is no number above 0, or a picture that is too large or of no pixels.
    pub fn size(&self, size: [usize; 2], outscale: Option<f64>) -> Result<[usize; 2]> {
        let factor = self.factor();
        let whole = size.map(|side| side.saturating_mul(factor));
        check_size("picture", whole)?;
        let Some(scale) = outscale else { return Ok(whole) };
        if !(scale > 0.0 && scale <= MOST_OUTSCALE) {
            let expected = format!("a number above 0, at most {MOST_OUTSCALE}");
            return Err(Error::option(OUTSCALE, expected, scale.to_string()));
        }
        // As Real-ESRGAN's own program rounds.
        let scaled = size.map(|side| (side as f64 * scale) as usize);
        if scaled.contains(&0) {
            let found = format!("{scale} of {}x{}", size[0], size[1]);
            return Err(Error::option(OUTSCALE, "a scale that leaves a pixel", found));
        }
        check_size(OUTSCALE, scaled)?;
        Ok(scaled)
    }

    /// What runs for each of `pictures` pictures of `size`.
    pub(super) fn subject(&self, size: [usize; 2], pictures: usize) -> Subject<'_> {
        let [w, h] = self.config().extents(size);
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        let (name, model, bound) = (UPSCALER.name, &self.part.net.model, &self.part.bound);
        Subject { name, phase: Phase::Upscale, model, bound, dims, runs: Runs::of_request(pictures) }
    }

    /// Bytes of the arrays in host memory beside what the network has, at most: the picture and its numbers, those of the larger one and
    /// that one, and what it is resized to.
    pub(super) fn bytes(&self, size: [usize; 2], result: [usize; 2]) -> usize {
        let numbers = |[w, h]: [usize; 2]| CHANNELS.saturating_mul(w).saturating_mul(h);
        let folded = self.config().extents(size).map(|side| side * self.config().unshuffled());
        let larger = folded.map(|side| side * self.factor());
        let between = [larger[0].max(result[0]), larger[1].max(result[1])];
        let bytes = [numbers(size), 4 * numbers(folded), 5 * numbers(larger), numbers(between), numbers(result)];
        bytes.into_iter().fold(0, usize::saturating_add)
    }
}

/// Refuses a picture larger than pictures may be.
fn check_size(option: &'static str, [width, height]: [usize; 2]) -> Result<()> {
    if width.max(height) <= MAX_SIDE && width.saturating_mul(height) <= MAX_PIXELS {
        return Ok(());
    }
    let expected = format!("a result of at most {MAX_SIDE} pixels a side, and {MAX_PIXELS} in all");
    Err(Error::option(option, expected, format!("{width}x{height}")))
}

impl Networks for UpscaleModel {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

/// A network that makes pictures larger on a device, ready for pictures.
///
/// ```no_run
/// use std::path::Path;
///
/// use pinhole::ggml::Device;
/// use pinhole::image::Picture;
/// use pinhole::pipeline::{UpscaleModel, Upscaler};
///
/// let model = UpscaleModel::open(Path::new("RealESRGAN_x4plus.pth"))?;
/// let mut upscaler = Upscaler::new(model, Device::best()?)?;
/// let larger = upscaler.upscale(Picture::open(Path::new("heart.png"))?.image(), None)?;
/// larger.image.save("larger.png")?;
/// # Ok::<(), pinhole::Error>(())
/// ```
pub struct Upscaler {
    model: Arc<UpscaleModel>,
    machine: Machine,
}

/// What became of a picture.
#[derive(Clone, Debug)]
pub struct Upscaled {
    /// The larger picture.
    pub image: Image,
    /// The plan that was followed.
    pub plan: Plan,
    /// How long it took.
    pub timings: Timings,
    /// What was allocated on the device, with its peak.
    pub memory: Usage,
    /// The same, beside what was planned.
    pub phases: Vec<PhaseMemory>,
    /// Bytes of weights that were used where they lie in the file.
    pub mapped_bytes: usize,
}

impl Upscaler {
    /// One that computes on `device`, on the CPU with one thread for each core.
    ///
    /// # Errors
    /// [`Error::Device`] if the device does not start.
    pub fn new(model: impl Into<Arc<UpscaleModel>>, device: Device) -> Result<Upscaler> {
        Upscaler::with_threads(model, device, processors::cores(), CancelFlag::new())
    }

    /// As [`new`](Upscaler::new), on the CPU with `threads` threads, the caller's among them. `cancel` stops it between operations.
    ///
    /// # Errors
    /// [`Error::Device`] if the device does not start, [`Error::OutOfMemory`] if its threads do not.
    pub fn with_threads(
        model: impl Into<Arc<UpscaleModel>>,
        device: Device,
        threads: usize,
        cancel: CancelFlag,
    ) -> Result<Upscaler> {
        let machine = Machine::new(&[device], threads, &cancel)?;
        Ok(Upscaler { model: model.into(), machine })
    }

    /// The network.
    pub fn model(&self) -> &UpscaleModel {
        &self.model
    }

    /// Sets how much memory pictures may take from now on.
    pub fn set_memory(&mut self, options: MemoryOptions) {
        self.machine.options = options;
    }

    /// What a picture of `size` will have on the device if it becomes `outscale` times as large. Computes nothing, and reads no weight.
    ///
    /// # Errors
    /// [`Error::OverBudget`] if nothing fits; as [`UpscaleModel::size`].
    pub fn plan(&self, size: [usize; 2], outscale: Option<f64>) -> Result<Plan> {
        let limits = self.machine.limits_of(self.machine.first())?;
        let planned = budget::plan(&[self.measure(size, outscale)?], self.machine.options.offload, &limits);
        planned.map_err(|refusal: Refusal| {
            let what = format!("the {} at {}x{}", refusal.component, size[0], size[1]);
            self.machine.over_budget(&refusal, what, "a smaller picture, or ")
        })
    }

    /// The least budget that works for a picture of `size`.
    ///
    /// # Errors
    /// As [`UpscaleModel::size`].
    pub fn least_budget(&self, size: [usize; 2], outscale: Option<f64>) -> Result<usize> {
        let limits = self.machine.limits_of(self.machine.first())?;
        Ok(budget::least(&[self.measure(size, outscale)?], self.machine.options.offload, &limits))
    }

    /// What there is to say of the budget: that it is more than the device has.
    ///
    /// # Errors
    /// A device that does not say how much it has.
    pub fn budget_note(&self) -> Result<Option<String>> {
        Ok(self.machine.budget_notes()?.into_iter().next())
    }

    fn measure(&self, size: [usize; 2], outscale: Option<f64>) -> Result<Component> {
        let beside = self.model.bytes(size, self.model.size(size, outscale)?);
        let component = self.machine.first().measure(&self.model.subject(size, 1), Turn::ALL)?;
        Ok(Component { beside, ..component })
    }

    /// Makes `image` larger: as much as the network does, or `outscale` times.
    ///
    /// # Errors
    /// As [`plan`](Upscaler::plan); [`Error::Cancelled`], [`Error::OutOfMemory`], [`Error::NotFinite`] if numbers overflow.
    pub fn upscale(&mut self, image: &Image, outscale: Option<f64>) -> Result<Upscaled> {
        self.upscale_watched(image, outscale, &mut |_: Event| Ok(()))
    }

    /// As [`upscale`](Upscaler::upscale). `observer` hears what happens, and can end it.
    ///
    /// # Errors
    /// As [`upscale`](Upscaler::upscale), and the observer's.
    pub fn upscale_watched(
        &mut self,
        image: &Image,
        outscale: Option<f64>,
        observer: &mut dyn Observer,
    ) -> Result<Upscaled> {
        let plan = self.plan([image.width(), image.height()], outscale)?;
        let _inside = self.machine.workers.enter();
        self.machine.recover()?;
        let model = Arc::clone(&self.model);
        let mut run = Run::new(&mut self.machine, observer, &plan);
        run.event(Event::Planned(plan.clone()))?;
        run.machine.set_limits(&plan)?;
        let size = model.size([image.width(), image.height()], outscale)?;
        let mut images = larger(&model, std::slice::from_ref(image), size, &mut run)?;
        let image = images.pop().ok_or_else(|| Error::graph("upscale", "no picture"))?;
        let Run { timings, mapped: mapped_bytes, phases, .. } = run;
        let highest = phases.iter().map(|phase| &phase.measured).max_by_key(|usage| usage.peak);
        let memory = self.machine.first().left_after(highest);
        Ok(Upscaled { image, plan, timings, memory, phases, mapped_bytes })
    }
}

/// `images`, which have one size, as large as the network of `model` makes them, and then resized to `width` by `height`.
pub(super) fn larger(
    model: &UpscaleModel,
    images: &[Image],
    [width, height]: [usize; 2],
    run: &mut Run<'_>,
) -> Result<Vec<Image>> {
    let Some(first) = images.first() else { return Ok(Vec::new()) };
    let (size, net, factor) = ([first.width(), first.height()], &model.part.net, model.factor());
    let subject = model.subject(size, images.len());
    let start = run.begin(Phase::Upscale, stage_runs(run.plan, &subject), 0)?;
    let (mut running, mut all) = (run.start(&subject)?, Vec::with_capacity(images.len()));
    for image in images {
        running.set(net.pixels, &model.config().taken(image.rgb(), size)?)?;
        run.compute(&mut running, Cadence::Request)?;
        let numbers = finite(running.get(net.result)?, "the larger picture")?;
        let bytes = model.config().given(&numbers, image.rgb(), size)?;
        drop(numbers);
        let larger = Image::new(size[0] * factor, size[1] * factor, bytes);
        let larger = larger.ok_or_else(|| Error::graph("upscale", "a picture of another size"))?;
        all.push(if [width, height] == [larger.width(), larger.height()] {
            larger
        } else {
            larger.resized(width, height, Filter::Lanczos)?
        });
    }
    run.finish(running);
    run.end(Phase::Upscale, start)?;
    Ok(all)
}
