//! Accepting connections: as axum does, and with limits on those that send nothing, or slowly.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once. More wait in the kernel's queue until one ends.
const MOST: usize = 10_000;
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// After an error of the listener that is no fault of a client, such as too many open files.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves until `shutdown`; then no connection is accepted any more, and this ends when those that are open have. A request's
/// head has `patience` to arrive, from the connection's beginning or the answer before.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Duration,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (places, connections) = (Arc::new(Semaphore::new(MOST)), TaskTracker::new());
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, listener.accept().await?.0))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((place, stream)) => {
                let serving = connection(stream, router.clone(), patience, shutdown.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

async fn connection(stream: TcpStream, router: Router, patience: Duration, shutdown: CancellationToken) {
    // Answers are written whole: waiting for more to send would only delay them.
    stream.set_nodelay(true).ok();
    // Told from the start, so that the clock runs before the first byte.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(HEAD_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke off");
    }
}
