//! What surrounds every handler.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Span;

use super::metrics;
use super::problem::{Code, Problem};
use super::state::AppState;

/// The header that names a request in logs.
pub const REQUEST_ID: &str = "x-request-id";

/// Longest id of a client's that is kept with an evaluation, in bytes.
const MAX_KEPT_ID: usize = 200;

/// The request's id, if it can be kept.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(|id| (1..=MAX_KEPT_ID).contains(&id.len()))
}

/// A span with the request's id, so that every log line inside carries it.
pub fn span(request: &Request) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok()).unwrap_or("");
    tracing::info_span!("request", id, method = %request.method(), path = request.uri().path())
}

/// Counts and times requests by route template, method and status.
pub async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = metrics::method_label(request.method());
    let started = Instant::now();
    let response = next.run(request).await;
    metrics::REQUESTS.with_label_values(&[method, &route, response.status().as_str()]).inc();
    metrics::SECONDS.with_label_values(&[method, &route]).observe(started.elapsed().as_secs_f64());
    response
}

/// Gives up on requests that should be quick.
pub async fn time_limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.settings.request_timeout;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(Code::Timeout, format!("no answer within {} s: try again", limit.as_secs_f64()))
            .into_response(),
    }
}

/// A panic becomes a 500 like any other fault.
pub fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause.downcast_ref::<&str>().map(|s| s.to_string());
    let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into());
    Problem::internal(text).into_response()
}
