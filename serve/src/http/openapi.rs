//! The description of the interfaces, for programs that make clients of it.

use utoipa::OpenApi;

use super::{events, native, openai, ops};

#[derive(OpenApi)]
#[openapi(
    info(title = "pinhole", description = "Pictures by diffusion models under a hard ceiling of memory."),
    paths(
        native::submit,
        native::list,
        native::show,
        native::cancel,
        events::events,
        native::plan,
        native::picture,
        native::about,
        openai::models,
        openai::model,
        openai::generations,
        openai::edits,
        ops::health,
        ops::ready,
        ops::metrics
    ),
    components(schemas(events::Progress, events::Preview)),
    tags(
        (name = "jobs", description = "Jobs: send, listen, cancel, plan."),
        (name = "openai", description = "OpenAI's images interface."),
        (name = "operation", description = "For those who watch over the server.")
    )
)]
struct Description;

/// This description.
pub(super) async fn openapi() -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(Description::openapi())
}
