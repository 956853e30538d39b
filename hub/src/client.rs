//! One request: redirects, tokens, refusals that are explained.

use std::fs;
use std::io::{self, Read};
use std::time::Duration;

use ureq::http::{HeaderMap, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::{Error, Result, quoted};
use crate::patience::Trouble;
use crate::settings::{Settings, Token};
use crate::url::Url;

/// How often a request may be sent elsewhere.
const REDIRECTS: usize = 10;
/// The most bytes of an answer that is read as a whole: a page of a list of files.
const LARGEST_ANSWER: u64 = 16 << 20;
/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(20);

/// What stands in hints for the address of a repository's page, which is not known here.
pub(crate) const REPOSITORYS_PAGE: &str = "the repository's page";

/// Who is asking, and whom that may be told.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The hub: no other origin gets the token.
    pub(crate) origin: Url,
    pub(crate) token: Option<Token>,
}

/// A part of a file: its first byte and the one behind its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// An answer with status 2xx.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Where it came from, after all redirects.
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    body: Body,
}

/// Sends requests.
pub(crate) struct Client {
    agent: Agent,
    offline: bool,
}

impl Client {
    /// A client with the proxies that the environment names (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Name`] for a file of certificates that cannot be read.
    pub(crate) fn new(settings: &Settings) -> Result<Client> {
        let config = Agent::config_builder()
            .user_agent(concat!("pinhole/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots(settings)?).build())
            .http_status_as_error(false)
            // Followed here, where the token is left behind.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections_per_host(settings.connections)
            .timeout_connect(Some(CONNECTING))
            .timeout_per_read(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .build();
        Ok(Client { agent: config.into(), offline: settings.offline })
    }

    /// Asks for `url`, or for a `range` of it, and follows where that leads. With `unless_changed`, the range is that of the version
    /// which has this tag.
    pub(crate) fn get(
        &self,
        url: &Url,
        identity: &Identity,
        range: Option<Range>,
        unless_changed: Option<&str>,
    ) -> Result<Answer, Trouble> {
        if self.offline {
            let error =
                Error::Unreachable { url: url.to_string(), problem: "HF_HUB_OFFLINE forbids it".into(), hint: None };
            return Err(error.with_hint("unset HF_HUB_OFFLINE to fetch files").into());
        }
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(at.as_str()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(Range { from, to }) = range {
                request = request.header(header::RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
            }
            if let Some(tag) = unless_changed {
                request = request.header(header::IF_RANGE, tag);
            }
            if let Some(token) = identity.token.as_ref().filter(|_| at.is_same_origin(&identity.origin)) {
                request = request.header(header::AUTHORIZATION, token.header());
            }
            let (parts, body) = request.call().map_err(|error| unreachable(&at, error))?.into_parts();
            match parts.status.as_u16() {
                200 | 206 => {
                    return Ok(Answer { status: parts.status.as_u16(), url: at, headers: parts.headers, body });
                }
                301 | 302 | 303 | 307 | 308 => at = redirected(&at, &parts.headers)?,
                status => return Err(refused(&at, status, &parts.headers, identity)),
            }
        }
        Err(Error::answer(url.as_str(), "a file", format!("more than {REDIRECTS} redirects")).into())
    }
}

impl Answer {
    /// The header `name`, if it is text.
    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        text_of(&self.headers, name)
    }

    /// How many bytes the body has, if the server says so.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// The body, cut after `most` bytes.
    pub(crate) fn reader(self, most: u64) -> impl Read + Send + use<> {
        self.body.into_with_config().limit(u64::MAX).reader().take(most)
    }

    /// The whole body, as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, Trouble> {
        let url = self.url.clone();
        let mut text = Vec::new();
        self.reader(LARGEST_ANSWER + 1).read_to_end(&mut text).map_err(|error| broken(&url, error))?;
        if text.len() as u64 > LARGEST_ANSWER {
            return Err(Error::answer(url.as_str(), "a list of files", "more than 16 MiB").into());
        }
        serde_json::from_slice(&text).map_err(|error| {
            let found =
                if is_page(None, &text) { "a page of HTML".to_owned() } else { format!("something else: {error}") };
            let hint = "is that address a hub? A proxy or a login page may answer in its place";
            Error::answer(url.without_query(), "the answer of a hub, in JSON", found).with_hint(hint).into()
        })
    }
}

/// Whether a body that begins with `start` is a page for browsers.
pub(crate) fn is_page(content_type: Option<&str>, start: &[u8]) -> bool {
    let start = start[..start.len().min(512)].trim_ascii_start().to_ascii_lowercase();
    let says_so = content_type.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"));
    says_so || start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

/// The trouble that a body broke off with.
pub(crate) fn broken(url: &Url, error: io::Error) -> Trouble {
    unreachable(url, ureq::Error::Io(error))
}

fn text_of(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The certificates to trust.
fn roots(settings: &Settings) -> Result<RootCerts> {
    let Some(path) = &settings.certificates else { return Ok(RootCerts::WebPki) };
    let text = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text).flatten() {
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(Error::name(&path.to_string_lossy(), "SSL_CERT_FILE has no certificates in PEM"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Where an answer with these headers leads.
fn redirected(at: &Url, headers: &HeaderMap) -> Result<Url, Error> {
    let location = text_of(headers, header::LOCATION).unwrap_or_default();
    let wrong = |found: String| Error::answer(at.without_query(), "a redirect to a file", found);
    let to = at.join(location).ok().filter(|_| !location.is_empty());
    let to = to.ok_or_else(|| wrong(format!("one to `{}`", quoted(location))))?;
    if at.is_secret() && !to.is_secret() {
        return Err(wrong(format!("one from https to {}", to.without_query())));
    }
    Ok(to)
}

/// What came in the place of an answer.
fn unreachable(url: &Url, error: ureq::Error) -> Trouble {
    let hint = match &error {
        ureq::Error::HostNotFound => "is there a network? HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror",
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
            "if a proxy here has certificates of its own, name their file in SSL_CERT_FILE"
        }
        _ => "what was fetched stays: run the command again",
    };
    let problem = match &error {
        ureq::Error::Timeout(_) => "it does not answer".to_owned(),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        other => quoted(&other.to_string()),
    };
    let is_lasting = matches!(
        error,
        ureq::Error::Rustls(_)
            | ureq::Error::Tls(_)
            | ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::InvalidProxyUrl
    );
    let error = Error::Unreachable { url: url.without_query().to_owned(), problem, hint: Some(hint.to_owned()) };
    if is_lasting { Trouble::Lasting(error) } else { Trouble::Passing(error, None) }
}

/// Why a server gives nothing.
fn refused(at: &Url, status: u16, headers: &HeaderMap, identity: &Identity) -> Trouble {
    let said = text_of(headers, "x-error-message").map(quoted).filter(|said| !said.is_empty());
    let code = text_of(headers, "x-error-code").unwrap_or_default();
    let is_known = identity.token.is_some() && at.is_same_origin(&identity.origin);
    let (problem, hint) = match (status, code) {
        (401 | 403, "GatedRepo") if is_known => (
            "its owner has not let your account in",
            "open the repository's page and accept its terms with the account of your token, and wait if they are looked at by hand",
        ),
        (401 | 403, "GatedRepo") => (
            "its owner lets in accounts that have accepted its terms",
            "accept them on the repository's page, make a token in your settings there, and put it in HF_TOKEN (or `hf auth login`)",
        ),
        (401, "RepoNotFound") | (404, "RepoNotFound") | (401, _) if !is_known => (
            "there is no such repository, or it is private",
            "is the name right? For a private one, put a token in HF_TOKEN (or `hf auth login`)",
        ),
        (401 | 404, "RepoNotFound") => {
            ("there is no such repository, or your token may not see it", "is the name right?")
        }
        (401, _) => ("it does not know your token", "make a new one in your settings there, and put it in HF_TOKEN"),
        (404, "RevisionNotFound") => {
            ("the repository has no such revision", "the repository's page lists its branches")
        }
        (404 | 410, _) => ("there is no such file", "the repository's page lists its files"),
        (403, _) => (
            "it refuses",
            "a signature may have run out: run the command again; or the token may not see this repository",
        ),
        (429, _) => ("too many requests", "wait a while; with a token in HF_TOKEN, more are allowed"),
        (500.., _) => ("the server failed", "what was fetched stays: run the command again later"),
        _ => ("it refuses", "the address may be wrong"),
    };
    let problem = said.map_or(problem.to_owned(), |said| format!("{problem}: {said}"));
    let url = at.without_query().to_owned();
    let error = Error::Refused { url, status, problem, hint: Some(hint.to_owned()) };
    match status {
        408 | 425 | 429 | 500.. => Trouble::Passing(error, pause(headers)),
        // A signature that a redirect led with may have run out: the hub makes another.
        401 | 403 | 404 | 410 if !at.is_same_origin(&identity.origin) => Trouble::Passing(error, None),
        _ => Trouble::Lasting(error),
    }
}

/// How long a server asks to wait, in seconds. A date is as good as nothing said.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    text_of(headers, header::RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}
