//! A small service that speaks as much of S3 as objects need: PUT, GET with ranges, HEAD, conditions, lists in pages, and errors.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::runtime::Runtime;

/// The bucket that there is.
const BUCKET: &str = "files";

#[derive(Default)]
struct Objects {
    /// Bytes and version by key.
    all: BTreeMap<String, (Bytes, usize)>,
    versions: usize,
    /// Requests so far, as `GET bucket/key`.
    asked: Vec<String>,
    /// So many requests are told that the service is busy.
    busy: usize,
}

pub(crate) struct S3 {
    objects: Arc<Mutex<Objects>>,
    address: SocketAddr,
    _runtime: Runtime,
}

impl S3 {
    pub(crate) fn start() -> S3 {
        let runtime = Runtime::new().unwrap();
        let objects: Arc<Mutex<Objects>> = Arc::default();
        let router = Router::new()
            .route("/{bucket}", axum::routing::get(list))
            .route("/{bucket}/{*key}", axum::routing::any(answer))
            .with_state(Arc::clone(&objects));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        S3 { objects, address, _runtime: runtime }
    }

    /// Tells a program where the service is, as one tells Amazon's tools.
    pub(crate) fn tell(&self, command: &mut Command) {
        command.env("AWS_ENDPOINT_URL", format!("http://{}", self.address)).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "somebody").env("AWS_SECRET_ACCESS_KEY", "secret").env("AWS_REGION", "here");
    }

    pub(crate) fn put(&self, key: &str, bytes: Vec<u8>) {
        self.objects.lock().unwrap().put(key, bytes.into());
    }

    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().all.get(key).map(|(bytes, _)| bytes.clone())
    }

    /// How many requests there were, as `GET bucket/key`.
    pub(crate) fn count(&self, request: &str) -> usize {
        self.objects.lock().unwrap().asked.iter().filter(|asked| *asked == request).count()
    }

    /// Tells the next requests that the service is busy.
    pub(crate) fn refuse(&self, requests: usize) {
        self.objects.lock().unwrap().busy = requests;
    }
}

impl Objects {
    fn put(&mut self, key: &str, bytes: Bytes) {
        self.versions += 1;
        self.all.insert(key.to_owned(), (bytes, self.versions));
    }
}

/// Objects of one page of a list: few, so that there are several pages.
const PAGE: usize = 2;

async fn list(
    State(objects): State<Arc<Mutex<Objects>>>,
    Path(bucket): Path<String>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let objects = objects.lock().unwrap();
    let prefix = format!("{bucket}/{}", asked.get("prefix").map_or("", String::as_str));
    let skipped: usize = asked.get("continuation-token").map_or(0, |token| token.parse().unwrap());
    let found: Vec<_> = objects.all.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
    let mut text = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    for (key, (bytes, version)) in found.iter().skip(skipped).take(PAGE) {
        let (key, size) = (key.strip_prefix(&format!("{bucket}/")).unwrap(), bytes.len());
        text += &format!("<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>");
        text += &format!("<ETag>\"{version}\"</ETag><Size>{size}</Size></Contents>");
    }
    if found.len() > skipped + PAGE {
        text += &format!("<NextContinuationToken>{}</NextContinuationToken>", skipped + PAGE);
    }
    (text + "</ListBucketResult>").into_response()
}

async fn answer(
    State(objects): State<Arc<Mutex<Objects>>>,
    Path((bucket, name)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut objects = objects.lock().unwrap();
    let key = format!("{bucket}/{name}");
    objects.asked.push(format!("{method} {key}"));
    if objects.busy > 0 {
        objects.busy -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, error("SlowDown")).into_response();
    }
    let text = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
    if !text("authorization").starts_with("AWS4-HMAC-SHA256 Credential=somebody/") {
        return (StatusCode::FORBIDDEN, error("AccessDenied")).into_response();
    }
    if bucket != BUCKET {
        return (StatusCode::NOT_FOUND, error("NoSuchBucket")).into_response();
    }
    let there = objects.all.get(&key).cloned();
    if method == Method::PUT {
        if there.is_some() && text("if-none-match") == "*" {
            return (StatusCode::PRECONDITION_FAILED, error("PreconditionFailed")).into_response();
        }
        objects.put(&key, body);
        return [(header::ETAG, format!("\"{}\"", objects.versions))].into_response();
    }
    let Some((bytes, version)) = there else { return (StatusCode::NOT_FOUND, error("NoSuchKey")).into_response() };
    let tag = format!("\"{version}\"");
    if !["", &tag].contains(&text("if-match")) {
        return (StatusCode::PRECONDITION_FAILED, error("PreconditionFailed")).into_response();
    }
    let about = [(header::ETAG, tag), (header::LAST_MODIFIED, "Mon, 01 Jan 2024 00:00:00 GMT".to_owned())];
    let Some((begin, end)) = text("range").strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return (about, bytes).into_response();
    };
    let (begin, end): (usize, usize) = (begin.parse().unwrap(), end.parse().unwrap());
    let range = [(header::CONTENT_RANGE, format!("bytes {begin}-{end}/{}", bytes.len()))];
    (StatusCode::PARTIAL_CONTENT, about, range, bytes.slice(begin..=end)).into_response()
}

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>")
}
