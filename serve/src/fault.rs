//! Why a request gets no picture, in the words and numbers that a client is told.

use std::fmt;
use std::ops::{Deref, DerefMut};

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pinhole::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something was refused or failed. One pointer, so that results that may be faults stay small.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Fault(Box<Said>);

/// What a fault says. Its JSON is that of OpenAI's errors, with what pinhole knows beside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Said {
    /// What happened.
    pub message: String,
    /// What kind of fault it is: `invalid_request_error`, `over_budget`, `queue_full`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The member of the request that is to blame.
    pub param: Option<String>,
    /// The same as `type`, for clients that look here.
    pub code: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Bytes that the request needs at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_bytes: Option<u64>,
    /// Bytes that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_bytes: Option<u64>,
    /// Seconds after which it may be worth another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// The code of the answer.
    #[serde(skip, default = "internal")]
    pub status: u16,
}

fn internal() -> u16 {
    500
}

impl Deref for Fault {
    type Target = Said;

    fn deref(&self) -> &Said {
        &self.0
    }
}

impl DerefMut for Fault {
    fn deref_mut(&mut self) -> &mut Said {
        &mut self.0
    }
}

impl Fault {
    /// An answer of `status`. `kind` is for programs, `message` for people.
    pub fn new(status: StatusCode, kind: &str, message: impl Into<String>) -> Fault {
        Fault(Box::new(Said {
            message: message.into(),
            kind: kind.to_owned(),
            param: None,
            code: Some(kind.to_owned()),
            hint: None,
            needed_bytes: None,
            given_bytes: None,
            retry_after: None,
            status: status.as_u16(),
        }))
    }

    /// A request that cannot work.
    pub fn invalid(param: &str, message: impl Into<String>) -> Fault {
        let mut fault = Fault::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        fault.param = Some(param.to_owned());
        fault
    }

    /// There is nothing of that name, or it is somebody else's.
    pub fn not_found(what: &str) -> Fault {
        Fault::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// The server has no room now.
    pub fn busy(kind: &str, message: impl Into<String>) -> Fault {
        Fault::new(StatusCode::TOO_MANY_REQUESTS, kind, message).retry(5)
    }

    /// The server is about to end.
    pub fn stopping() -> Fault {
        let message = "the server is stopping and takes no more jobs";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).retry(30)
    }

    /// Somebody asked for a stop, or left.
    pub fn cancelled(message: &str) -> Fault {
        let mut fault = Fault::new(StatusCode::BAD_REQUEST, "cancelled", message);
        // The code that nginx has for a client that closed its request.
        fault.status = 499;
        fault
    }

    /// It took longer than it may.
    pub fn late() -> Fault {
        let message = "the job's deadline passed before it was done";
        Fault::new(StatusCode::GATEWAY_TIMEOUT, "deadline", message)
    }

    /// Something broke that no client is to blame for.
    pub fn internal(message: impl Into<String>) -> Fault {
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The same, with what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }

    /// The same, which may be tried again after so many seconds.
    #[must_use]
    pub fn retry(mut self, seconds: u32) -> Fault {
        self.retry_after = Some(seconds);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let (message, hint) = (error.to_string(), error.hint().map(str::to_owned));
        let mut fault = match error {
            Error::Option { option, expected, found, .. } => {
                // The library's words for options are those of the command line.
                let name = option.trim_start_matches("--").replace('-', "_");
                Fault::invalid(&name, format!("{name}: expected {expected}, found {found}"))
            }
            Error::OverBudget { needed, given, .. } => {
                let mut fault = Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "over_budget", message);
                (fault.needed_bytes, fault.given_bytes) = (Some(needed as u64), Some(given as u64));
                fault
            }
            Error::Cancelled => Fault::cancelled("the job was cancelled"),
            _ => Fault::internal(message),
        };
        fault.hint = hint;
        fault
    }
}

/// The JSON around a fault.
#[derive(Serialize, ToSchema)]
pub struct FaultBody {
    /// The fault.
    pub error: Fault,
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(FaultBody { error: self })).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
