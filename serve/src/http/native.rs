//! The native interface: jobs that are sent, looked at, listened to and cancelled.

use std::sync::Arc;

use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pinhole::plan::{ComponentPlan, Plan};
use pinhole::sample::{Sampler, Schedule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{App, Json};
use crate::drawing::Drawing;
use crate::fault::{Fault, FaultBody};
use crate::job::{Job, Outcome, Snapshot, Status, Stop};
use crate::keys::Caller;
use crate::planner::Planned;
use crate::server::Server;
use crate::store::seconds;

/// A job as its owner sees it.
#[derive(Serialize, ToSchema)]
pub(super) struct JobView {
    id: Uuid,
    status: Status,
    /// Seconds since 1970.
    created: f64,
    began: Option<f64>,
    ended: Option<f64>,
    /// Jobs that are taken before it, while it waits.
    ahead: Option<usize>,
    /// The phase that runs.
    phase: Option<&'static str>,
    /// Steps that are done, and of how many.
    step: usize,
    steps: usize,
    /// What to draw, without the pictures that were given.
    drawing: Drawing,
    /// Why there are no pictures.
    error: Option<Fault>,
    /// What came of it.
    outcome: Option<Outcome>,
    /// Where its pictures are: PNGs.
    images: Vec<String>,
    /// Its plan, in the answer to its acceptance.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanView>,
}

impl JobView {
    pub(super) fn new(server: &Server, job: &Job, snapshot: &Snapshot) -> JobView {
        let ahead = (snapshot.status == Status::Queued).then(|| server.jobs.waiting(Some(job.id)).1).flatten();
        let pictures = snapshot.outcome.as_ref().map_or(0, |outcome| outcome.seeds.len());
        JobView {
            id: job.id,
            status: snapshot.status,
            created: seconds(job.created),
            began: snapshot.began.map(seconds),
            ended: snapshot.ended.map(seconds),
            ahead,
            phase: snapshot.phase,
            step: snapshot.step,
            steps: snapshot.steps,
            drawing: job.drawing.clone(),
            error: snapshot.fault.clone(),
            outcome: snapshot.outcome.as_deref().cloned(),
            images: (0..pictures).map(|at| address(job.id, at)).collect(),
            plan: None,
        }
    }
}

/// Where picture number `at` of a job is.
pub(super) fn address(id: Uuid, at: usize) -> String {
    format!("/v1/files/{id}/{at}.png")
}

/// What a job takes.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanView {
    width: usize,
    height: usize,
    steps: usize,
    batch: usize,
    sampler: &'static str,
    schedule: &'static str,
    guidance: Option<f32>,
    cfg_scale: f32,
    /// The most bytes on the device at once; of several, on the first.
    peak_bytes: usize,
    /// The ceiling, if there is one.
    limit_bytes: Option<usize>,
    /// The same of each device, in the order of the server's.
    devices: Vec<DevicePlanView>,
    /// The same of host memory, all that the process holds counted.
    host_peak_bytes: Option<usize>,
    host_limit_bytes: Option<usize>,
    /// In the order in which they run; of several devices, all of the first, then all of the second. What several compute together is there
    /// once for each.
    components: Vec<ComponentView>,
}

/// What a job takes on one device.
#[derive(Serialize, ToSchema)]
pub(super) struct DevicePlanView {
    peak_bytes: usize,
    limit_bytes: Option<usize>,
}

/// What one network of a model takes.
#[derive(Serialize, ToSchema)]
pub(super) struct ComponentView {
    /// The number of the device that has it, from 0.
    device: usize,
    phase: &'static str,
    component: &'static str,
    stages: usize,
    streamed_stages: usize,
    peak_bytes: usize,
    /// What the peak consists of.
    weights_bytes: usize,
    slots_bytes: usize,
    ports_bytes: usize,
    activations_bytes: usize,
    scratch_bytes: usize,
    others_bytes: usize,
    /// Weights that are used where they lie in the file.
    mapped_bytes: usize,
    moved_each_step_bytes: usize,
}

impl PlanView {
    pub(super) fn new(planned: &Planned) -> PlanView {
        let Planned { settings, plan, .. } = planned;
        let mut devices = Vec::new();
        for (device, own) in plan.devices().enumerate() {
            devices.push(DevicePlanView { peak_bytes: plan.peak_on(device), limit_bytes: own.limit });
        }
        let mut components = Vec::new();
        let mut pass: Option<&Plan> = Some(plan);
        while let Some(plan) = pass {
            for (device, plan) in plan.devices().enumerate() {
                components.extend(plan.components.iter().map(|component| ComponentView::new(device, component)));
            }
            pass = plan.second.as_deref();
        }
        PlanView {
            width: settings.width,
            height: settings.height,
            steps: settings.steps,
            batch: settings.batch,
            sampler: settings.sampling.sampler.name(),
            schedule: settings.sampling.schedule.name(),
            guidance: settings.guidance,
            cfg_scale: settings.cfg_scale,
            peak_bytes: plan.peak(),
            limit_bytes: plan.limit,
            host_peak_bytes: plan.host.map(|host| host.peak),
            host_limit_bytes: plan.host.map(|host| host.limit),
            components,
            devices,
        }
    }
}

impl ComponentView {
    fn new(device: usize, plan: &ComponentPlan) -> ComponentView {
        let parts = &plan.parts;
        ComponentView {
            device,
            phase: plan.phase.name(),
            component: plan.name,
            stages: plan.placement.slot_of.len(),
            streamed_stages: plan.streamed(),
            peak_bytes: parts.total(),
            weights_bytes: parts.weights,
            slots_bytes: parts.slots,
            ports_bytes: parts.ports,
            activations_bytes: parts.activations,
            scratch_bytes: parts.scratch,
            others_bytes: parts.others + parts.overhead,
            mapped_bytes: plan.mapped,
            moved_each_step_bytes: plan.moved_each_step,
        }
    }
}

/// How a job is sent.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitQuery {
    /// Answer when the job has ended. Who leaves before that stops it.
    #[serde(default)]
    wait: bool,
}

/// Send a job.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", params(SubmitQuery), request_body = Drawing, responses(
    (status = 202, description = "Accepted; `Location` is its address.", body = JobView),
    (status = 200, description = "With `wait=true`: it has ended.", body = JobView),
    (status = 400, description = "A value that cannot work.", body = FaultBody),
    (status = 413, description = "The body is too large.", body = FaultBody),
    (status = 422, description = "It cannot fit into memory: `needed_bytes` and `given_bytes` say why.", body = FaultBody),
    (status = 429, description = "The queue is full.", body = FaultBody),
    (status = 503, description = "The server stops.", body = FaultBody)
))]
pub(super) async fn submit(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Query(SubmitQuery { wait }): Query<SubmitQuery>,
    Json(drawing): Json<Drawing>,
) -> Result<Response, Fault> {
    let accepted = server.accept(&caller, drawing).await?;
    let plan = PlanView::new(&accepted.planned);
    if wait {
        let (job, snapshot) = accepted.leash().wait().await?;
        return Ok(axum::Json(JobView::new(&server, &job, &snapshot)).into_response());
    }
    let job = accepted.let_go();
    let view = JobView { plan: Some(plan), ..JobView::new(&server, &job, &job.now()) };
    let mut response = (StatusCode::ACCEPTED, axum::Json(view)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Your jobs that are known, the latest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses((status = 200, description = "Jobs.", body = Vec<JobView>)))]
pub(super) async fn list(State(server): State<App>, Extension(caller): Extension<Caller>) -> axum::Json<Vec<JobView>> {
    let jobs = server.jobs.all_of(&caller.owner);
    axum::Json(jobs.iter().map(|job| JobView::new(&server, job, &job.now())).collect())
}

/// The job that an address names, if it is the caller's.
pub(super) fn find(server: &Server, caller: &Caller, id: &str) -> Result<Arc<Job>, Fault> {
    let id = Uuid::try_parse(id).ok();
    id.and_then(|id| server.jobs.find(id, &caller.owner)).ok_or_else(|| Fault::not_found("job"))
}

/// One of your jobs.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = Uuid, Path, description = "The job.")), responses(
    (status = 200, description = "The job.", body = JobView), (status = 404, description = "There is none.", body = FaultBody)
))]
pub(super) async fn show(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<axum::Json<JobView>, Fault> {
    let job = find(&server, &caller, &id)?;
    Ok(axum::Json(JobView::new(&server, &job, &job.now())))
}

/// Stop a job. One that has ended stays as it is.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = Uuid, Path, description = "The job.")), responses(
    (status = 202, description = "It stops, or has ended.", body = JobView), (status = 404, description = "There is none.", body = FaultBody)
))]
pub(super) async fn cancel(
    State(server): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let job = find(&server, &caller, &id)?;
    if !job.status().is_end() {
        server.jobs.stop(&job, Stop::Asked);
    }
    Ok((StatusCode::ACCEPTED, axum::Json(JobView::new(&server, &job, &job.now()))).into_response())
}

/// Say what a job would take, and draw nothing.
#[utoipa::path(post, path = "/v1/plan", tag = "jobs", request_body = Drawing, responses(
    (status = 200, description = "Its plan.", body = PlanView),
    (status = 400, description = "A value that cannot work.", body = FaultBody),
    (status = 422, description = "It cannot fit into memory.", body = FaultBody)
))]
pub(super) async fn plan(
    State(server): State<App>,
    Json(mut drawing): Json<Drawing>,
) -> Result<axum::Json<PlanView>, Fault> {
    drawing.fix(server.catalogue())?;
    let (_, planned) = server.plan(&drawing).await?;
    Ok(axum::Json(PlanView::new(&planned)))
}

/// A picture. Everyone who knows its address may see it.
#[utoipa::path(get, path = "/v1/files/{id}/{name}", tag = "jobs",
    params(("id" = Uuid, Path, description = "The job."), ("name" = String, Path, description = "`0.png`, `1.png`, ...")),
    responses((status = 200, description = "A PNG.", content_type = "image/png", body = Vec<u8>),
              (status = 404, description = "There is none.", body = FaultBody))
)]
pub(super) async fn picture(
    State(server): State<App>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, Fault> {
    let none = || Fault::not_found("picture");
    let at: usize = name.strip_suffix(".png").and_then(|at| at.parse().ok()).ok_or_else(none)?;
    let id = Uuid::try_parse(&id).map_err(|_| none())?;
    let job = server.jobs.find_any(id).ok_or_else(none)?;
    let jobs = Arc::clone(&server.jobs);
    // The store reads from the disk.
    let found = tokio::task::spawn_blocking(move || jobs.picture(&job, at)).await;
    let bytes = found.map_err(|_| Fault::internal("the store"))??.ok_or_else(none)?;
    let headers =
        [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=31536000, immutable")];
    Ok((headers, bytes).into_response())
}

/// What this server has.
#[derive(Serialize, ToSchema)]
pub(super) struct About {
    version: &'static str,
    device: String,
    models: Vec<String>,
    loras: Vec<String>,
    samplers: Vec<Named>,
    schedules: Vec<Named>,
    waiting: usize,
    most_pixels: usize,
    most_batch: usize,
    most_steps: usize,
    most_body_bytes: usize,
    most_prompt_bytes: usize,
}

/// A name for programs, and one for people.
#[derive(Serialize, ToSchema)]
pub(super) struct Named {
    name: &'static str,
    label: &'static str,
}

/// Models, LoRAs, samplers and limits of this server.
#[utoipa::path(get, path = "/v1/server", tag = "operation", responses((status = 200, description = "What there is.", body = About)))]
pub(super) async fn about(State(server): State<App>) -> axum::Json<About> {
    let names = |entries: &[crate::catalogue::Entry]| entries.iter().map(|entry| entry.name.clone()).collect();
    let (limits, catalogue) = (&server.limits, server.catalogue());
    axum::Json(About {
        version: env!("CARGO_PKG_VERSION"),
        device: server.shelf.device_names(),
        models: names(&catalogue.models),
        loras: names(&catalogue.loras),
        samplers: Sampler::ALL.iter().map(|it| Named { name: it.name(), label: it.label() }).collect(),
        schedules: Schedule::ALL.iter().map(|it| Named { name: it.name(), label: it.label() }).collect(),
        waiting: server.jobs.waiting(None).0,
        most_pixels: limits.pixels,
        most_batch: limits.batch,
        most_steps: limits.steps,
        most_body_bytes: limits.body,
        most_prompt_bytes: limits.prompt,
    })
}
