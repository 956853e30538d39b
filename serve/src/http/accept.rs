//! Connections: so many at once, and none that keeps the server waiting.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time;
use tokio_io_timeout::TimeoutStream;
use tower_service::Service;

use crate::limits::Limits;
use crate::metrics::Metrics;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The head of a request has so many bytes, and so many fields, at most.
const HEAD: usize = 64 << 10;
const FIELDS: usize = 64;

/// What those are told for whom there is no room.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 21\r\nretry-after: 5\r\n\
    connection: close\r\n\r\ntoo many connections\n";

/// How long to wait when the system has no more files for connections.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `stop` is true, and then those that are open until they are done.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.add("pinhole_connections_refused_total", 1.0);
            // As much as the system takes at once: no one waits for those that are turned away.
            let _ = stream.into_std().and_then(|mut stream| stream.write(FULL));
            continue;
        };
        let connection = Connection { router: router.clone(), peer, stop: stop.clone(), limits: limits.clone() };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            metrics.add("pinhole_connections", 1.0);
            connection.serve(stream).await;
            metrics.add("pinhole_connections", -1.0);
            drop(place);
        });
    }
    drop(listener);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = time::timeout(limits.grace + limits.write_time, places.acquire_many(all)).await;
}

/// A connection that broke before it was accepted says nothing of the next one. Where files are used up, waiting helps.
async fn pause_after(error: &io::Error) {
    let broke = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !broke {
        tracing::warn!("cannot accept a connection: {error}");
        time::sleep(PAUSE).await;
    }
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    stop: watch::Receiver<bool>,
    limits: Limits,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let Connection { router, peer, mut stop, limits } = self;
        // Small answers do not wait for more to send.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_time));
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_time)
            .max_buf_size(HEAD)
            .max_headers(FIELDS)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            // What went wrong with a connection is its client's affair.
            _ = connection.as_mut() => return,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
