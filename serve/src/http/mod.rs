//! Everything that is HTTP: connections, bodies, keys, and one file for each interface.

mod accept;
mod body;
mod events;
mod native;
mod openai;
mod openapi;
mod ops;
mod page;
mod webui;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::info;

use crate::fault::Fault;
use crate::keys::is_own_host;
use crate::server::Server;

pub use accept::{Peer, serve};
use body::{Json, Room};

/// What every handler has.
pub type App = Arc<Server>;

/// All addresses. Pages of `origins` may use them, too; `*` is every page.
pub fn router(server: App, origins: &[HeaderValue]) -> Router {
    let room = Room::new(&server.limits);
    let keyed = Router::new()
        .route("/v1/jobs", post(native::submit).get(native::list))
        .route("/v1/jobs/{id}", get(native::show).delete(native::cancel))
        .route("/v1/jobs/{id}/cancel", post(native::cancel))
        .route("/v1/jobs/{id}/events", get(events::events))
        .route("/v1/plan", post(native::plan))
        .route("/v1/server", get(native::about))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{name}", get(openai::model))
        .route("/v1/images/generations", post(openai::generations))
        .route("/v1/images/edits", post(openai::edits))
        .route("/metrics", get(ops::metrics))
        .nest("/sdapi/v1", webui::router())
        // Of those alone who have a key is a body read.
        .layer(middleware::from_fn_with_state(room, body::read_whole))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), require_key));
    let open = Router::new()
        .route("/", get(page::page))
        .route("/health", get(ops::health))
        .route("/ready", get(ops::ready))
        .route("/openapi.json", get(openapi::openapi))
        // Its address is the key to a picture: no one can guess it.
        .route("/v1/files/{id}/{name}", get(native::picture));
    let mut router = keyed.merge(open).fallback(nothing).method_not_allowed_fallback(wrong_method);
    router = router.layer(middleware::from_fn_with_state(Arc::clone(&server), require_own_host));
    if !origins.is_empty() {
        router = router.layer(cors(origins));
    }
    router.layer(middleware::from_fn_with_state(Arc::clone(&server), note)).with_state(server)
}

/// The addresses of a worker: health and metrics alone, since its jobs come from a queue.
#[cfg(feature = "cluster")]
pub fn router_of_worker(server: App) -> Router {
    Router::new()
        .route("/health", get(ops::health))
        .route("/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&server), require_own_host))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), note))
        .with_state(server)
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let any = origins.iter().any(|origin| origin == "*");
    let allowed = if any { AllowOrigin::any() } else { AllowOrigin::list(origins.iter().cloned()) };
    CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST, Method::DELETE]).allow_headers([
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        HeaderName::from_static("x-api-key"),
    ])
}

/// Only who has a key goes on. Handlers learn who it is.
async fn require_key(State(server): State<App>, mut request: Request, next: Next) -> Response {
    let Some(Peer(address)) = request.extensions().get::<Peer>().copied() else {
        return Fault::internal("a request from nowhere").into_response();
    };
    match server.keys.caller(request.headers(), address.ip()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(fault) => {
            let mut response = fault.into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// A server without keys answers to its own names alone.
async fn require_own_host(State(server): State<App>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if server.keys.are_none() && !is_own_host(host, &server.hosts) {
        let host = pinhole::error::shortened(host.to_owned());
        let fault =
            Fault::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", format!("this server is not called `{host}`"));
        return fault.with_hint("start it with --host NAME, or with --api-keys").into_response();
    }
    next.run(request).await
}

/// Counts answers, and writes a line for each.
async fn note(State(server): State<App>, request: Request, next: Next) -> Response {
    let (began, method) = (Instant::now(), request.method().clone());
    // Not the path itself: it may hold anything.
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status();
    server.metrics.add_of("pinhole_http_requests_total", "code", status.as_str(), 1.0);
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    info!(%method, route, status = status.as_u16(), milliseconds, "answered");
    response
}

async fn nothing() -> Fault {
    Fault::not_found("address").with_hint("/openapi.json and the page at / say what there is")
}

async fn wrong_method() -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address does not take this method")
}
