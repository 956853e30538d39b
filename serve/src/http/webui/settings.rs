//! Options: which model the caller's requests mean from now on.

use axum::extract::{Extension, State};
use axum::response::Json;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use crate::fault::Fault;
use crate::http::Json as Body;
use crate::keys::Caller;

/// The options that have an effect here. Others are not kept.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Settings {
    sd_model_checkpoint: Option<String>,
}

impl Settings {
    /// The model that is meant: a title may have a hash behind the name, `dev.safetensors [0123abcd]`.
    pub(super) fn model(&self) -> Option<&str> {
        let title = self.sd_model_checkpoint.as_deref()?;
        Some(title.split_once(" [").map_or(title, |(name, _)| name).trim())
    }
}

pub(super) async fn options(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, Fault> {
    let chosen = server.chosen_model(&caller.owner);
    let model = &server.catalogue().model(chosen.as_deref())?.name;
    Ok(Json(
        json!({ "sd_model_checkpoint": model, "samples_format": "png", "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic" }),
    ))
}

/// Other options have no effect.
pub(super) async fn set_options(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Body(settings): Body<Settings>,
) -> Result<Json<Value>, Fault> {
    if let Some(name) = settings.model() {
        server.choose_model(&caller.owner, name)?;
    }
    Ok(Json(json!({})))
}

/// The switches that the server was started with, as far as clients look at them.
pub(super) async fn flags(State(server): State<App>) -> Json<Value> {
    Json(json!({ "api": true, "api_auth": !server.keys.are_none(), "nowebui": false }))
}
