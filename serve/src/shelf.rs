//! Models that are open, and pipelines that were made of them.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use pinhole::builtin::{self, MINI_NAME};
use pinhole::ggml::{CancelFlag, Device, Ledger};
use pinhole::pipeline::{self, Additions, MemoryOptions, Opened, Pipeline};
use pinhole::plan::Plan;
use pinhole::plan::devices::Among;
use pinhole::source::Source;

use crate::catalogue::{Catalogue, ModelKey};
use crate::fault::Fault;

/// How many models a thread keeps, whatever room there is: each has open files and maps.
const MOST_MODELS: usize = 4;

/// Where models are opened, and what pipelines are made with. All threads share it.
pub struct Shelf {
    /// What may be opened.
    pub catalogue: Catalogue,
    /// Where pipelines compute.
    devices: Devices,
    /// With how many threads of the CPU.
    pub threads: usize,
    /// Under which ceilings.
    pub memory: MemoryOptions,
    /// The account of all of them on each device.
    ledgers: Vec<Ledger>,
    opened: Mutex<Vec<Open>>,
}

/// The devices that compute each job together.
pub struct Devices {
    /// At least one.
    pub all: Vec<Device>,
    /// The ceiling of each, if each has its own; none if one holds for all.
    pub budgets: Vec<Option<usize>>,
    /// What they may have among them.
    pub among: Among,
}

/// A model that is open as long as somebody has it.
struct Open {
    key: ModelKey,
    model: Weak<Opened>,
    files: Vec<(PathBuf, Option<Seen>)>,
}

/// What a file looked like when it was opened: bytes and time of the last change.
type Seen = (u64, Option<SystemTime>);

fn seen(path: &PathBuf) -> Option<Seen> {
    fs::metadata(path).ok().map(|about| (about.len(), about.modified().ok()))
}

impl Shelf {
    /// With nothing open.
    pub fn new(catalogue: Catalogue, devices: Devices, threads: usize, memory: MemoryOptions) -> Shelf {
        let ledgers = devices.all.iter().map(|_| Ledger::new()).collect();
        Shelf { catalogue, devices, threads, memory, ledgers, opened: Mutex::default() }
    }

    /// Starts the devices once, as every model will.
    ///
    /// # Errors
    /// A device that does not start or is named twice; another number of budgets than of devices.
    pub fn check_devices(&self) -> pinhole::Result<()> {
        let model = Arc::new(pipeline::open(&builtin::mini()?)?);
        self.with_devices(&model).map(|_| ())
    }

    /// The names of the devices, with commas between them.
    pub fn device_names(&self) -> String {
        self.devices.all.iter().map(Device::name).collect::<Vec<_>>().join(",")
    }

    /// Bytes that are held on each device.
    pub fn held(&self) -> Vec<usize> {
        self.ledgers.iter().map(|ledger| ledger.usage().total).collect()
    }

    /// The ceiling of all devices together, if each has one.
    pub fn ceiling(&self) -> Option<usize> {
        let mut all = 0usize;
        for device in 0..self.devices.all.len() {
            let own = self.devices.budgets.get(device).copied().unwrap_or(self.memory.vram);
            all = all.saturating_add(own?);
        }
        Some(all)
    }

    /// The model of `key`: the one that is open already, unless one of its files was replaced.
    ///
    /// # Errors
    /// As [`Catalogue::model`] and [`pipeline::open_with`].
    pub fn open(&self, key: &ModelKey) -> Result<Arc<Opened>, Fault> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|open| open.model.strong_count() > 0);
        if let Some(open) = opened.iter().find(|open| open.key == *key) {
            let as_before = open.files.iter().all(|(path, before)| seen(path) == *before);
            if let Some(model) = open.model.upgrade().filter(|_| as_before) {
                return Ok(model);
            }
        }
        opened.retain(|open| open.key != *key);
        let entry = self.catalogue.model(Some(&key.model))?;
        let mut additions = Additions::default();
        for (name, strength) in &key.loras {
            additions.loras.push((self.catalogue.lora(name)?.path.clone(), *strength));
        }
        let is_built_in = entry.path.as_os_str() == MINI_NAME;
        let source = if is_built_in { builtin::mini()? } else { Source::open(&entry.path)? };
        let model = Arc::new(pipeline::open_with(&source, &additions)?);
        let mut files: Vec<PathBuf> = additions.loras.into_iter().map(|(path, _)| path).collect();
        if !is_built_in {
            let indexes = model.source.indexes();
            files.extend(indexes.into_iter().flat_map(|index| index.maps()).map(|map| map.path().to_owned()));
        }
        let files = files.into_iter().map(|path| (path.clone(), seen(&path))).collect();
        opened.push(Open { key: key.clone(), model: Arc::downgrade(&model), files });
        Ok(model)
    }

    fn pipeline(&self, model: &Arc<Opened>) -> Result<Pipeline, Fault> {
        let mut pipeline = self.with_devices(model)?;
        pipeline.share_ledgers(&self.ledgers);
        Ok(pipeline)
    }

    fn with_devices(&self, model: &Arc<Opened>) -> pinhole::Result<Pipeline> {
        let Devices { all, budgets, among } = &self.devices;
        let mut pipeline = Pipeline::on_devices(Arc::clone(model), all, self.threads, CancelFlag::new())?;
        pipeline.set_memory(self.memory);
        pipeline.set_among(*among);
        if !budgets.is_empty() {
            pipeline.set_budgets(budgets)?;
        }
        Ok(pipeline)
    }
}

/// A model that a thread keeps ready.
pub struct Resident {
    key: ModelKey,
    /// The model.
    pub model: Arc<Opened>,
    /// What computes it.
    pub pipeline: Pipeline,
    /// Bytes that it holds on each device between runs.
    bytes: Vec<usize>,
}

/// The models that a thread keeps ready; the one that was used last is the last.
pub struct Residents {
    shelf: Arc<Shelf>,
    all: Vec<Resident>,
}

impl Residents {
    /// None yet.
    pub fn new(shelf: Arc<Shelf>) -> Residents {
        Residents { shelf, all: Vec::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The one of `key`, loaded if it is not there, and whether it had to be.
    ///
    /// # Errors
    /// As [`Shelf::open`]; what starting the device returns.
    pub fn bring(&mut self, key: &ModelKey) -> Result<(&mut Resident, bool), Fault> {
        let model = self.shelf.open(key)?;
        let mut kept = None;
        if let Some(at) = self.all.iter().position(|resident| resident.key == *key) {
            let resident = self.all.remove(at);
            // Of one whose files were replaced nothing stays.
            kept = Some(resident).filter(|resident| Arc::ptr_eq(&resident.model, &model));
        }
        let is_new = kept.is_none();
        let resident = match kept {
            Some(resident) => resident,
            None => {
                if self.all.len() >= MOST_MODELS {
                    self.all.remove(0);
                }
                let pipeline = self.shelf.pipeline(&model)?;
                Resident { key: key.clone(), model, pipeline, bytes: Vec::new() }
            }
        };
        self.all.push(resident);
        let last = self.all.last_mut().ok_or_else(|| Fault::internal("no model"))?;
        Ok((last, is_new))
    }

    /// Unloads others than the last one, those first that were not used for longest, until `plan` has room. Returns how many.
    pub fn make_room(&mut self, plan: &Plan) -> usize {
        let before = self.all.len();
        while self.all.len() > 1 {
            let others = self.held_by_others();
            let of_all: usize = others.iter().sum();
            let mut is_over = plan.host.is_some_and(|host| of_all.saturating_add(host.peak) > host.limit);
            for (device, (own, others)) in plan.devices().zip(others).enumerate() {
                is_over |= own.limit.is_some_and(|limit| others.saturating_add(plan.peak_on(device)) > limit);
            }
            if !is_over {
                break;
            }
            self.all.remove(0);
        }
        before - self.all.len()
    }

    /// Notes what the last one holds now.
    pub fn weigh(&mut self) {
        let mut own = self.shelf.held();
        for (own, others) in own.iter_mut().zip(self.held_by_others()) {
            *own = own.saturating_sub(others);
        }
        if let Some(last) = self.all.last_mut() {
            last.bytes = own;
        }
    }

    /// Bytes that all except for the last one hold on each device.
    fn held_by_others(&self) -> Vec<usize> {
        let mut held = vec![0; self.shelf.ledgers.len()];
        for resident in self.all.iter().rev().skip(1) {
            held.iter_mut().zip(&resident.bytes).for_each(|(held, bytes)| *held += bytes);
        }
        held
    }

    /// The one that was brought last.
    pub fn last(&mut self) -> Option<&mut Resident> {
        self.all.last_mut()
    }

    /// Unloads the one that was brought last.
    pub fn drop_last(&mut self) {
        self.all.pop();
    }

    /// Unloads all. Returns how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.all.len();
        self.all.clear();
        count
    }
}
