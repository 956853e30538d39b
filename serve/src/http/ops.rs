//! For those who watch over the server.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;

/// The process lives.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, description = "The process lives.", body = String)))]
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Jobs are taken.
#[utoipa::path(get, path = "/ready", tag = "operation", responses(
    (status = 200, description = "Jobs are taken.", body = String),
    (status = 503, description = "They are not: the server begins or stops.", body = String)
))]
pub(super) async fn ready(State(server): State<App>) -> Response {
    match server.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

/// What Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, description = "Metrics in Prometheus' text format.", body = String)))]
pub(super) async fn metrics(State(server): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.metrics.text()).into_response()
}
