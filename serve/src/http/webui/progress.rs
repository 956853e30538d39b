//! How far the caller's job is, and how it is stopped.

use std::time::SystemTime;

use axum::extract::{Extension, State};
use axum::response::Json;
use serde_json::{Value, json};

use super::App;
use crate::job::{Job, Stop};
use crate::keys::Caller;
use crate::store::seconds;

pub(super) async fn progress(State(server): State<App>, Extension(caller): Extension<Caller>) -> Json<Value> {
    let waiting = server.jobs.all_of(&caller.owner).iter().filter(|job| !job.status().is_end()).count();
    let running = server.jobs.running_of(&caller.owner);
    Json(match running.first() {
        Some(job) => of(job, waiting),
        None => {
            let state = state(0, 0, waiting, "0", false);
            json!({ "progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": null, "textinfo": null })
        }
    })
}

fn of(job: &Job, waiting: usize) -> Value {
    let snapshot = job.now();
    let share = snapshot.step as f64 / snapshot.steps.max(1) as f64;
    let since = snapshot.began.and_then(|began| began.elapsed().ok()).unwrap_or_default().as_secs_f64();
    let left = if share > 0.0 { since / share - since } else { 0.0 };
    let stamp = timestamp(job.created);
    let state = state(snapshot.step, snapshot.steps, waiting, &stamp, job.cancel.is_raised());
    let image = snapshot.preview.map(|(_, png)| base64::encode(png));
    json!({ "progress": share, "eta_relative": left, "state": state, "current_image": image, "textinfo": snapshot.phase })
}

fn state(step: usize, steps: usize, waiting: usize, timestamp: &str, interrupted: bool) -> Value {
    json!({
        "skipped": false,
        "interrupted": interrupted,
        "stopping_generation": interrupted,
        "job": if steps > 0 { "scripts_txt2img" } else { "" },
        "job_count": waiting,
        "job_timestamp": timestamp,
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": steps,
    })
}

/// A moment as a text that is longer the later it is.
pub(super) fn timestamp(time: SystemTime) -> String {
    format!("{:.0}", seconds(time))
}

/// Stops the caller's jobs that are drawn.
pub(super) async fn interrupt(State(server): State<App>, Extension(caller): Extension<Caller>) -> Json<Value> {
    for job in server.jobs.running_of(&caller.owner) {
        server.jobs.stop(&job, Stop::Asked);
    }
    Json(json!({}))
}
