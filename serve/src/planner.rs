//! Plans requests before they are accepted, on a thread of its own: the one that draws is busy.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use pinhole::pipeline::{Opened, Settings};
use pinhole::plan::Plan;
use tokio::sync::oneshot;

use crate::drawing::Asked;
use crate::fault::Fault;
use crate::shelf::{Residents, Shelf};

/// A request that was planned.
#[derive(Clone)]
pub struct Planned {
    /// The model that it was planned for.
    pub model: Arc<Opened>,
    /// The request with all defaults.
    pub settings: Settings,
    /// What it takes.
    pub plan: Plan,
}

struct Question {
    asked: Asked,
    answer: oneshot::Sender<Result<(Asked, Planned), Fault>>,
}

/// Where requests are planned.
#[derive(Clone)]
pub struct Planner {
    questions: SyncSender<Question>,
}

impl Planner {
    /// Starts it. At most `waiting` requests wait for it; jobs draw at most `pixels`. After `idle` without work it keeps nothing.
    ///
    /// # Errors
    /// What the system says if there is no thread to be had.
    pub fn start(shelf: Arc<Shelf>, waiting: usize, pixels: usize, idle: Option<Duration>) -> std::io::Result<Planner> {
        let (questions, asked) = mpsc::sync_channel(waiting.max(1));
        let residents = Residents::new(shelf);
        thread::Builder::new().name("planner".into()).spawn(move || answer(residents, &asked, pixels, idle))?;
        Ok(Planner { questions })
    }

    /// Plans `asked`.
    ///
    /// # Errors
    /// A fault with numbers if it does not fit; of a value that cannot work; that too many wait.
    pub async fn plan(&self, asked: Asked) -> Result<(Asked, Planned), Fault> {
        let (answer, planned) = oneshot::channel();
        match self.questions.try_send(Question { asked, answer }) {
            Ok(()) => planned.await.unwrap_or_else(|_| Err(Fault::internal("the planner ended"))),
            Err(TrySendError::Full(_)) => Err(Fault::busy("planner_full", "too many requests wait to be planned")),
            Err(TrySendError::Disconnected(_)) => Err(Fault::internal("the planner ended")),
        }
    }
}

/// Plans until no one asks any more.
fn answer(mut residents: Residents, asked: &Receiver<Question>, pixels: usize, idle: Option<Duration>) {
    loop {
        let question = match idle.filter(|_| !residents.is_empty()) {
            Some(idle) => asked.recv_timeout(idle),
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match question {
            // A client that left needs no plan.
            Ok(Question { answer, .. }) if answer.is_closed() => {}
            Ok(Question { asked, answer }) => {
                let planned = plan(&mut residents, &asked, pixels);
                let _ = answer.send(planned.map(|planned| (asked, planned)));
            }
            Err(RecvTimeoutError::Timeout) => drop(residents.clear()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The plan of `asked`, if it draws no more than so many `pixels`.
fn plan(residents: &mut Residents, asked: &Asked, pixels: usize) -> Result<Planned, Fault> {
    let (resident, _) = residents.bring(&asked.key)?;
    let settings = resident.pipeline.settings(&asked.request)?;
    let last = settings.last();
    let extents = [last.width, last.height, last.batch, last.frames];
    let wanted = extents.into_iter().fold(1, usize::saturating_mul);
    if wanted > pixels {
        let message = format!("expected at most {pixels} pixels in all pictures of a job, found {wanted}");
        return Err(Fault::invalid("width", message).with_hint("draw fewer or smaller pictures"));
    }
    let plan = resident.pipeline.plan_settings(&settings)?;
    Ok(Planned { model: Arc::clone(&resident.model), settings, plan })
}
