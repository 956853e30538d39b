//! What there is, as the web UI lists it.

use axum::extract::State;
use axum::response::Json;
use pinhole::sample::{Sampler, Schedule};
use serde_json::{Value, json};

use super::App;

pub(super) async fn samplers() -> Json<Vec<Value>> {
    let mut all = Vec::new();
    for it in Sampler::ALL {
        all.push(json!({ "name": it.label(), "aliases": [it.name()], "options": {} }));
    }
    Json(all)
}

pub(super) async fn schedulers() -> Json<Vec<Value>> {
    let mut all = vec![schedule("automatic", "Automatic")];
    for it in Schedule::ALL {
        all.push(schedule(it.name(), it.label()));
    }
    Json(all)
}

fn schedule(name: &str, label: &str) -> Value {
    json!({ "name": name, "label": label, "aliases": null, "default_rho": -1, "need_inner_model": false })
}

/// Where files lie is no one's affair: their names stand for them.
pub(super) async fn models(State(server): State<App>) -> Json<Vec<Value>> {
    let mut all = Vec::new();
    for entry in &server.catalogue().models {
        let name = &entry.name;
        all.push(json!({ "title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null }));
    }
    Json(all)
}

pub(super) async fn loras(State(server): State<App>) -> Json<Vec<Value>> {
    let loras = server.catalogue().loras.iter();
    Json(loras.map(|it| json!({ "name": it.name, "alias": it.name, "path": it.name, "metadata": {} })).collect())
}

pub(super) async fn memory(State(server): State<App>) -> Json<Value> {
    let resident = pinhole::memory::resident().map_or(0, |resident| resident.total);
    let held: usize = server.shelf.held().iter().sum();
    let budget = server.shelf.ceiling();
    Json(json!({ "ram": { "used": resident }, "cuda": { "system": { "used": held, "total": budget } } }))
}

/// Nothing of that kind is here.
pub(super) async fn none() -> Json<Vec<Value>> {
    Json(Vec::new())
}

pub(super) async fn scripts() -> Json<Value> {
    Json(json!({ "txt2img": [], "img2img": [] }))
}

pub(super) async fn embeddings() -> Json<Value> {
    Json(json!({ "loaded": {}, "skipped": {} }))
}

pub(super) async fn refresh() -> Json<Value> {
    Json(json!({}))
}
