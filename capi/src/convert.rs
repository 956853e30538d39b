//! Converting.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::path::Path;
use std::ptr;
use std::sync::mpsc::sync_channel;
use std::thread;

use pinhole::convert::{self, NonFinite, Options, Plan, Target, WriteOptions};
use pinhole::pipeline;
use pinhole::source::slot::{self, SLOTS};
use pinhole::source::{Slot, Source};
use pinhole::{Error as E, Result};
use pinhole_quant::pattern::TensorPattern;
use pinhole_quant::workers::Workers;

use crate::cancel::{self, Cancel};
use crate::error::{Error, Failure};
use crate::model::Files;
use crate::options::{self, versioned};
use crate::progress::{CONVERT, Callbacks, ProgressFn, WarningFn, Watch};
use crate::{entry, session, text};

/// `pinhole_convert_options`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, private_interfaces, reason = "the header says what they are")]
pub struct ConvertOptions {
    pub struct_size: usize,
    pub source: *const Files,
    pub output: *const c_char,
    pub type_: *const c_char,
    pub component: *const c_char,
    pub tensors: *const *const c_char,
    pub tensor_count: usize,
    pub allow_requantize: i32,
    pub allow_nonfinite: i32,
    pub overwrite: i32,
    pub threads: i32,
    pub cancel: *mut Cancel,
    pub progress: ProgressFn,
    pub warning: WarningFn,
    pub user_data: *mut c_void,
}

const DEFAULT: ConvertOptions = ConvertOptions {
    struct_size: size_of::<ConvertOptions>(),
    source: ptr::null(),
    output: ptr::null(),
    type_: ptr::null(),
    component: ptr::null(),
    tensors: ptr::null(),
    tensor_count: 0,
    allow_requantize: 0,
    allow_nonfinite: 0,
    overwrite: 0,
    threads: 0,
    cancel: ptr::null_mut(),
    progress: None,
    warning: None,
    user_data: ptr::null_mut(),
};
versioned!(ConvertOptions, "pinhole_convert_options", size_of::<ConvertOptions>(), DEFAULT);

impl ConvertOptions {
    /// # Safety
    /// The header's contract for every member.
    unsafe fn patterns(&self) -> Result<Vec<TensorPattern>, Failure> {
        if self.tensors.is_null() && self.tensor_count > 0 {
            return Err(Failure::null("tensors"));
        }
        (0..self.tensor_count)
            .map(|i: usize| {
                // SAFETY: the caller promises `tensor_count` texts.
                let text = unsafe { text::required(*self.tensors.add(i), "tensors") }?;
                text.parse::<TensorPattern>().map_err(|error| {
                    let expected = format!("NAME=FORMAT ({error})");
                    E::option("--tensor", expected, format!("`{text}`")).into()
                })
            })
            .collect()
    }

    /// # Safety
    /// The header's contract for every member.
    unsafe fn run(&self) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        let (source, output, types, component, patterns, cancel) = unsafe {
            let output = Path::new(text::required(self.output, "output")?);
            let types = text::required(self.type_, "type")?;
            let component = text::optional(self.component, "component")?.map(component).transpose()?;
            let patterns = self.patterns()?;
            let files = options::read(self.source)?;
            if files.lora_count > 0 {
                let found = format!("{} of them", files.lora_count);
                return Err(E::option("loras", "none, since a conversion merges no LoRAs", found).into());
            }
            (files.open()?, output, types, component, patterns, cancel::flag(self.cancel))
        };
        let options = Options {
            types: types.parse()?,
            patterns,
            target: component.map_or(Target::Bundle, Target::Component),
            allow_requantize: self.allow_requantize != 0,
            merge: Vec::new(),
        };
        let callbacks = Callbacks::without_pictures(self.progress, self.warning, self.user_data);
        let work = Work {
            output,
            options: WriteOptions { overwrite: self.overwrite != 0, allow_nonfinite: self.allow_nonfinite != 0 },
            threads: session::threads(self.threads)?,
        };
        let mut watch = Watch::new(callbacks, cancel);
        match component {
            None => {
                let model = pipeline::open(&source)?;
                warn(&model.source, &mut watch)?;
                work.run(&convert::plan(&model.source, &model.networks(), options)?, &mut watch)
            }
            Some(slot) => {
                let (source, networks) = pipeline::component(&source, slot)?;
                warn(&source, &mut watch)?;
                work.run(&convert::plan(&source, &networks.networks(), options)?, &mut watch)
            }
        }
    }
}

fn component(name: &str) -> Result<&'static Slot, Failure> {
    slot::slot(name).ok_or_else(|| {
        let expected = format!("one of {}", SLOTS.map(|slot| slot.name).join(", "));
        E::option("--component", expected, format!("`{name}`")).into()
    })
}

/// Warns of files that nothing is read from.
fn warn(source: &Source, watch: &mut Watch) -> Result<(), Failure> {
    for text in source.passed_over() {
        watch.warn(text.clone())?;
    }
    Ok(())
}

/// A conversion that is planned.
struct Work<'a> {
    output: &'a Path,
    options: WriteOptions,
    threads: usize,
}

impl Work<'_> {
    fn run(&self, plan: &Plan<'_>, watch: &mut Watch) -> Result<(), Failure> {
        let Work { output, options, threads } = *self;
        if let Some(first) = plan.left_out.first() {
            let count = plan.left_out.len();
            watch.warn(format!("{count} tensors that no such model has are left out, {first} for one"))?;
        }
        watch.begin(CONVERT, 0, 0)?;
        // Callbacks belong on the caller's thread and the work on a thread of its own, so each report crosses over and waits for
        // its answer.
        let (report, reports) = sync_channel(0);
        let (answer, answers) = sync_channel::<Result<()>>(0);
        let written: Result<Vec<NonFinite>> = thread::scope(|scope| {
            let work = thread::Builder::new().name("convert".into()).spawn_scoped(scope, move || {
                let _inside = Workers::new(threads).enter();
                plan.write(output, options, &mut |progress| {
                    report.send((progress.done, progress.total)).map_err(|_| E::Cancelled)?;
                    answers.recv().unwrap_or(Err(E::Cancelled))
                })
            });
            let Ok(work) = work else {
                return Err(E::no_thread());
            };
            for (done, total) in reports {
                // Fails only where the work is over.
                let _ = answer.send(watch.bytes(done, total));
            }
            work.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        });
        for NonFinite { tensor, count } in written? {
            watch.warn(format!("{tensor} has {count} numbers that are not finite"))?;
        }
        Ok(())
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_convert_options_init(options: *mut ConvertOptions, struct_size: usize) -> i32 {
    // SAFETY: the header's contract.
    unsafe { options::init(options, struct_size) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_convert(options: *const ConvertOptions, error: *mut *mut Error) -> i32 {
    // SAFETY: the header's contract.
    unsafe { entry::call(error, || options::read(options)?.run()) }
}
