//! What one server takes from its clients at most. Everything that a client can make grow has its bound here.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// The most items of a list in a request.
const MOST_LISTED: usize = 64;

/// The bounds. All sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once. Those beyond are told so and closed.
    pub connections: usize,
    /// The body of one request.
    pub body: usize,
    /// All bodies that are being read or looked at.
    pub bodies: usize,
    /// A prompt.
    pub prompt: usize,
    /// Jobs that wait.
    pub queue: usize,
    /// Jobs of one key that wait.
    pub queue_per_key: usize,
    /// Requests that are looked at and planned at once.
    pub planning: usize,
    /// Pixels that a job draws: width x height x pictures x frames.
    pub pixels: usize,
    /// Pixels of a picture that is given.
    pub input_pixels: usize,
    /// Pictures that are given with one job.
    pub inputs: usize,
    /// Pixels of all pictures that are given with jobs that wait or are drawn: three bytes each.
    pub waiting_pixels: usize,
    /// Pictures that a job draws.
    pub batch: usize,
    /// Steps of a job.
    pub steps: usize,
    /// LoRAs of a job.
    pub loras: usize,
    /// Jobs of equal size that are drawn at once.
    pub coalesce: usize,
    /// Jobs that have ended and are still known.
    pub kept_jobs: usize,
    /// Their pictures, in memory.
    pub kept_bytes: usize,
    /// How long they are known.
    pub kept_for: Duration,
    /// How long a job may take from its acceptance to its end, unless it asks for less.
    pub deadline: Duration,
    /// How long the head of a request may take to arrive, and how long a connection may be idle.
    pub head_time: Duration,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// How long a client may read nothing of what is sent.
    pub write_time: Duration,
    /// How long jobs may go on after the signal to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            connections: 512,
            body: 32 << 20,
            bodies: 256 << 20,
            prompt: 16 << 10,
            queue: 64,
            queue_per_key: 16,
            planning: 64,
            pixels: 16 << 20,
            input_pixels: 16 << 20,
            inputs: 12,
            waiting_pixels: 256 << 20,
            batch: 8,
            steps: 150,
            loras: 8,
            coalesce: 4,
            kept_jobs: 256,
            kept_bytes: 256 << 20,
            kept_for: seconds(3600),
            deadline: seconds(3600),
            head_time: seconds(10),
            body_time: seconds(60),
            write_time: seconds(30),
            grace: seconds(30),
        }
    }
}

/// Reads a list of a request; null is an empty one. Three bytes of a body are enough for an item, which takes ten times as many in memory.
///
/// # Errors
/// Those of its items; that there are more than 64.
pub fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Few(PhantomData))
}

struct Few<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST_LISTED}")
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut few = Vec::new();
        while let Some(item) = items.next_element()? {
            if few.len() == MOST_LISTED {
                return Err(A::Error::invalid_length(few.len() + 1, &self));
            }
            few.push(item);
        }
        Ok(few)
    }
}
