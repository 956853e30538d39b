//! What happens to a job, as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time;
use utoipa::ToSchema;

use super::App;
use super::native::{JobView, find};
use crate::fault::{Fault, FaultBody};
use crate::job::{Job, Snapshot};
use crate::keys::Caller;

/// How often something is said when nothing happens, so that no one between takes the connection for dead.
const ALIVE: Duration = Duration::from_secs(15);

/// How far a job is.
#[derive(Serialize, ToSchema)]
pub(super) struct Progress {
    phase: Option<&'static str>,
    step: usize,
    steps: usize,
}

/// What the picture looks like.
#[derive(Serialize, ToSchema)]
pub(super) struct Preview {
    /// Which one it is.
    number: u64,
    /// A PNG in base64.
    b64_png: String,
}

/// One that listens.
struct Listener {
    server: App,
    job: Arc<Job>,
    watch: watch::Receiver<Snapshot>,
    /// The last preview that was sent.
    preview: u64,
    has_begun: bool,
    is_over: bool,
}

/// Listen to a job. Events are `job` (its state, when that changes), `progress`, `preview` and, as the last one, `end`. A listener who
/// reads slowly misses steps in between, and never the end. Who leaves does not stop the job.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs", params(("id" = uuid::Uuid, Path, description = "The job.")), responses(
    (status = 200, description = "Events.", content_type = "text/event-stream", body = String),
    (status = 404, description = "There is none.", body = FaultBody)
))]
pub(super) async fn events(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let job = find(&server, &caller, &id)?;
    let watch = job.watch();
    let listener = Listener { server, job, watch, preview: 0, has_begun: false, is_over: false };
    let texts = stream::unfold(listener, |mut listener| async {
        let text = listener.next().await?;
        Some((Ok::<_, std::convert::Infallible>(text), listener))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(texts)).into_response())
}

impl Listener {
    /// The next events.
    async fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        if self.has_begun {
            match time::timeout(ALIVE, self.watch.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(": alive\n\n".to_owned()),
            }
        }
        let snapshot = self.watch.borrow_and_update().clone();
        let mut text = String::new();
        if !self.has_begun {
            text += &event("job", &JobView::new(&self.server, &self.job, &snapshot));
            self.has_begun = true;
        }
        if snapshot.status.is_end() {
            self.is_over = true;
            return Some(text + &event("end", &JobView::new(&self.server, &self.job, &snapshot)));
        }
        let Snapshot { phase, step, steps, .. } = snapshot;
        text += &event("progress", &Progress { phase, step, steps });
        if let Some((number, png)) = snapshot.preview.filter(|(number, _)| *number > self.preview) {
            self.preview = number;
            text += &event("preview", &Preview { number, b64_png: base64::encode(png) });
        }
        Some(text)
    }
}

/// One event. JSON has no line breaks of its own, so it is one line.
fn event(name: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    format!("event: {name}\ndata: {data}\n\n")
}
