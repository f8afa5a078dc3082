//! `Idempotency-Key`: a request that is sent twice is carried out once, and answered twice alike.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use sqlx::types::Json;
use tokio::time::Instant;
use uuid::Uuid;

use super::access::Caller;
use super::extract::MAX_JSON_BYTES;
use super::problem::{Code, Problem};
use super::state::AppState;
use crate::store::idempotency::{self, Begin, StoredAnswer, Ticket};

pub const KEY: &str = "idempotency-key";
/// Set on answers that were given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Headers that belong to an answer, not to its transport.
const KEPT: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::LOCATION, header::ETAG, header::RETRY_AFTER, header::CACHE_CONTROL];
/// How long a duplicate waits for the first to be answered, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The id that the object of this request is to get, so that a request that is started over makes no second one.
#[derive(Debug, Clone, Copy)]
pub struct Reserved(pub Uuid);

/// Around every quick POST. Forms are compared by their content instead: their bytes differ with every attempt.
pub async fn layer(State(state): State<AppState>, caller: Caller, request: Request, next: Next) -> Response {
    let key = match key(request.headers()) {
        Ok(Some(key)) if request.method() == Method::POST => key,
        Ok(_) => return next.run(request).await,
        Err(problem) => return problem.into_response(),
    };
    let (parts, body) = request.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_JSON_BYTES).await else {
        let detail = format!("a body may have at most {MAX_JSON_BYTES} bytes, and must arrive whole");
        return Problem::new(Code::TooLarge, detail).into_response();
    };
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let print = fingerprint(&[path.as_bytes(), &bytes]);
    let work = move |ticket: &Ticket| {
        let mut request = Request::from_parts(parts, Body::from(bytes));
        request.extensions_mut().insert(Reserved(ticket.object));
        next.run(request)
    };
    once(state, &caller, &key, &print, work).await
}

/// SHA-256 over parts that cannot run into each other.
pub fn fingerprint(parts: &[&[u8]]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_vec()
}

/// The request's key, if it has one.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=255).contains(&text.len()));
    let bad = || Problem::new(Code::BadIdempotencyKey, "Idempotency-Key has 1 to 255 printable ASCII characters");
    Ok(Some(text.ok_or_else(bad)?.to_owned()))
}

/// Carries out `work`, or answers as it was answered before. The work goes on when the client goes away.
pub async fn once<F>(
    state: AppState,
    caller: &Caller,
    key: &str,
    fingerprint: &[u8],
    work: impl FnOnce(&Ticket) -> F,
) -> Response
where
    F: Future<Output = Response> + Send + 'static,
{
    match claim(&state, caller, key, fingerprint).await {
        Ok(Claimed::Run(ticket)) => {
            let work = work(&ticket);
            let answered = tokio::spawn(async move {
                let response = tokio::select! {
                    response = work => response,
                    () = go_on(&state, &ticket) => unreachable!("it goes on until the work is done"),
                };
                keep(&state, &ticket, response).await
            });
            answered.await.unwrap_or_else(|e| Problem::internal(e).into_response())
        }
        Ok(Claimed::Stored(answer)) => replay(answer),
        Err(problem) => problem.into_response(),
    }
}

/// Keeps duplicates waiting while the work lasts, which may be minutes.
async fn go_on(state: &AppState, ticket: &Ticket) {
    loop {
        tokio::time::sleep(idempotency::PRESUMED_DEAD / 3).await;
        if let Err(error) = idempotency::renew(&state.pool, ticket).await {
            tracing::warn!(%error, "a request that is being carried out could not be kept from being started over");
        }
    }
}

enum Claimed {
    Run(Ticket),
    Stored(StoredAnswer),
}

async fn claim(state: &AppState, caller: &Caller, key: &str, fingerprint: &[u8]) -> Result<Claimed, Problem> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match idempotency::begin(&state.pool, &caller.owner, key, fingerprint).await? {
            Begin::Run(ticket) => return Ok(Claimed::Run(ticket)),
            Begin::Stored(answer) => return Ok(Claimed::Stored(answer)),
            Begin::Mismatch => {
                let detail = "another request came with this Idempotency-Key: choose a new key for a new request";
                return Err(Problem::new(Code::IdempotencyMismatch, detail));
            }
            Begin::Busy if Instant::now() >= deadline => {
                let detail = "the first request with this Idempotency-Key has not been answered yet: try again";
                return Err(Problem::new(Code::InProgress, detail).retry_after(5));
            }
            Begin::Busy => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Stores what another attempt would get as well. Failures of the server, limits and conflicts of the moment are not kept.
async fn keep(state: &AppState, ticket: &Ticket, response: Response) -> Response {
    let status = response.status();
    if status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::CONFLICT].contains(&status) {
        if let Err(error) = idempotency::abandon(&state.pool, ticket).await {
            tracing::warn!(%error, "a request was not given back; it can be tried again in a minute");
        }
        return response;
    }
    let (parts, body) = response.into_parts();
    let body = match to_bytes(body, usize::MAX).await {
        Ok(body) => body,
        Err(error) => return Problem::internal(error).into_response(),
    };
    let header = |name: &HeaderName| Some((name.to_string(), parts.headers.get(name)?.to_str().ok()?.to_owned()));
    let headers = Json(KEPT.iter().filter_map(header).collect());
    let answer = StoredAnswer { status: status.as_u16() as i16, headers, body: body.to_vec() };
    if let Err(error) = idempotency::finish(&state.pool, ticket, &answer).await {
        tracing::warn!(%error, "an answer was not kept; a repeated request is carried out again, on the same object");
    }
    Response::from_parts(parts, Body::from(body))
}

fn replay(answer: StoredAnswer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status as u16).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers.0 {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
