//! Options: which model the caller's requests mean from now on.

use axum::extract::{Extension, State};
use axum::response::Json;
use serde_json::{Map, Value, json};

use super::{App, CHECKPOINT};
use crate::fault::Fault;
use crate::http::Json as Body;
use crate::keys::Caller;

/// The name in a title, which may have a hash behind it: `dev.safetensors [0123abcd]`.
pub(super) fn name_of(title: &str) -> &str {
    title.split_once(" [").map_or(title, |(name, _)| name).trim()
}

pub(super) async fn options(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, Fault> {
    let chosen = server.chosen_model(&caller.owner);
    let model = &server.catalogue().model(chosen.as_deref())?.name;
    Ok(Json(
        json!({ CHECKPOINT: model, "samples_format": "png", "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic" }),
    ))
}

/// Other options have no effect.
pub(super) async fn set_options(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Body(options): Body<Map<String, Value>>,
) -> Result<Json<Value>, Fault> {
    if let Some(title) = options.get(CHECKPOINT).and_then(Value::as_str) {
        server.choose_model(&caller.owner, name_of(title))?;
    }
    Ok(Json(json!({})))
}

/// The switches that the server was started with, as far as clients look at them.
pub(super) async fn flags(State(server): State<App>) -> Json<Value> {
    Json(json!({ "api": true, "api_auth": !server.keys.are_none(), "nowebui": false }))
}
