//! Bodies: read whole, within a size and a time, and never more of them at once than there is room for.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time;

use crate::fault::Fault;
use crate::limits::Limits;

/// What bodies are counted in.
const UNIT: usize = 1 << 10;

/// The room for bodies.
#[derive(Clone)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    limits: Limits,
}

impl Room {
    /// As much as `limits` say.
    pub(super) fn new(limits: &Limits) -> Room {
        let units = limits.bodies.max(limits.body).div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Room { units: Arc::new(Semaphore::new(units)), limits: limits.clone() }
    }
}

/// Reads the body of a request before anything looks at it. Its room is given back with the answer.
pub(super) async fn read_whole(State(room): State<Room>, request: Request, next: Next) -> Response {
    let Limits { body: most, body_time, .. } = room.limits;
    let told = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let length: usize = match told {
        Some(length) => length,
        None if is_chunked => most,
        None => 0,
    };
    if length == 0 {
        return next.run(request).await;
    }
    if length > most {
        return too_large(most).into_response();
    }
    let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX);
    let Ok(_units) = room.units.try_acquire_many(units) else {
        let message = "too many large requests at once";
        return Fault::new(StatusCode::SERVICE_UNAVAILABLE, "bodies_full", message).retry(2).into_response();
    };
    let (parts, body) = request.into_parts();
    let body = match time::timeout(body_time, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return too_large(most).into_response(),
        Ok(Err(error)) => {
            let message = format!("the body broke off: {error}");
            return Fault::new(StatusCode::BAD_REQUEST, "body_broken", message).into_response();
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} seconds", body_time.as_secs());
            return Fault::new(StatusCode::REQUEST_TIMEOUT, "body_slow", message).into_response();
        }
    };
    next.run(Request::from_parts(parts, Body::from(body))).await
}

fn too_large(most: usize) -> Fault {
    let message = format!("expected a body of at most {most} bytes");
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).with_hint("--max-body raises the limit")
}

/// A body of JSON. An empty one is an empty object.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Json<T>, Fault> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A form of another site may send plain text without asking this one.
        let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        let bytes = request.into_body().collect().await.map(|body| body.to_bytes());
        let bytes: Bytes = bytes.map_err(|error| Fault::invalid("body", format!("the body broke off: {error}")))?;
        if !is_json && !bytes.is_empty() {
            let message = "expected the content type application/json";
            return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
        }
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Json).map_err(|error| {
            let message = pinhole::error::shortened(error.to_string());
            Fault::invalid("body", format!("the body is not what was expected: {message}"))
        })
    }
}
