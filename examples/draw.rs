//! Draws a picture under a ceiling of memory, and says how far it is.
//!
//! ```text
//! cargo run --release --example draw -- mini "a red heart" heart.png
//! ```
#![allow(clippy::print_stderr)] // it is a program

use std::error::Error;

use pinhole::ggml::Device;
use pinhole::pipeline::{Event, MemoryOptions, Pipeline, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, path] = &arguments[..] else {
        return Err("usage: draw MODEL PROMPT PICTURE".into());
    };
    let mut pipeline = Pipeline::new(pinhole::open(model)?, Device::best()?)?;
    // What does not fit is refused before anything is loaded, with the number that would.
    pipeline.set_memory(MemoryOptions { vram: Some(4 << 30), ..MemoryOptions::default() });
    let request = Request { seed: 7, ..Request::new(prompt) };
    let generated = pipeline.generate_watched(&request, &mut |event: Event| {
        if let Event::Step { done, steps } = event {
            eprintln!("step {done} of {steps}");
        }
        Ok(())
    })?;
    generated.images[0].save(path)?;
    eprintln!("{} bytes at most, {} planned", generated.memory.peak, generated.plan.peak());
    Ok(())
}
