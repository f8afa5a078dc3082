//! `/evaluations/{id}/events`: what happens, as it happens (server-sent events).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::evaluation::find;
use super::extract::Path;
use super::problem::*;
use super::state::AppState;
use super::streams::{MOST, Place};
use crate::store::evaluations;
use crate::store::events;

/// How often a stream looks for events that did not change what the watcher sees.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Silence after which a comment shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client should wait before it connects again.
const RETRY: Duration = Duration::from_secs(3);

/// The operation that lasts as long as its evaluation.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(evaluation_events))
}

/// One event of a stream, line by line.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code, reason = "it describes what axum writes")]
struct StreamedEvent {
    /// For `Last-Event-ID`.
    id: String,
    event: String,
    /// A JSON object.
    data: String,
}

/// Follow an evaluation
///
/// Server-sent events, from the first on or after `Last-Event-ID`; the stream ends when the evaluation has ended. Their
/// data are JSON with `at`, and by event:
/// `state` (`state`, `outcome`), `progress` (`shards`), `results` (`conditions`: what one more shard found),
/// `log` (`shard`, `attempt`, `ending`, `lines`: the end of an attempt's log; for the owner alone), `attempt_failed` (`shard`, `attempt`, `code`, `detail`, `final`), `restart` (`generation`, `batch_limit`: earlier results are void).
#[utoipa::path(get, path = "/evaluations/{id}/events", tag = "evaluations",
    params(("id" = Uuid, Path), ("Last-Event-ID" = Option<i64>, Header, description = "`id` of the last event received")),
    responses((status = 200, description = "Events", body = StreamedEvent, content_type = "text/event-stream"), BadRequest, NotFound))]
async fn evaluation_events(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let evaluation = find(&state.pool, &caller, id).await?;
    let logs = caller.sees().is_none_or(|owner| evaluation.owner == owner);
    let last = match headers.get("last-event-id").map(|v| v.to_str().unwrap_or("?")) {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            Problem::new(Code::BadQuery, "Last-Event-ID is the id of an event of this stream").at("Last-Event-ID")
        })?,
    };
    let place = match caller.limited {
        true => Some(state.streams.enter(&caller.owner).ok_or_else(|| {
            let detail = format!("{MOST} streams of events are open, the most that an owner may have: close one");
            Problem::new(Code::RateLimited, detail).retry_after(RETRY.as_secs())
        })?),
        false => None,
    };
    Ok(Sse::new(stream(state, caller, place, id, last, logs)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn stream(
    state: AppState,
    caller: Caller,
    place: Option<Place>,
    id: Uuid,
    mut last: i64,
    logs: bool,
) -> impl Stream<Item = Result<Event, Infallible>> {
    async_stream::stream! {
        let _place = place;
        // Watched before it is read, so that nothing falls between the two.
        let mut changes = state.watcher.watch(id);
        yield Ok(Event::default().retry(RETRY));
        loop {
            // Sharing may have been taken back meanwhile, and keys revoked. The end is read before the events: what
            // happened before it is then surely among them.
            let known = caller.still_known(&state.pool).await;
            let ended = evaluations::ended(&state.pool, caller.sees(), id).await;
            let batch = events::after(&state.pool, id, last, logs).await;
            let (Ok(true), Ok(Some(ended)), Ok(batch)) = (known, ended, batch) else {
                // The client comes back with its last id, and hears the reason.
                return;
            };
            let full = batch.len() as i64 == events::BATCH;
            for event in batch {
                last = event.id;
                yield Ok(told(event));
            }
            if full {
                continue;
            }
            if ended {
                return;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = state.shutdown.cancelled() => return,
            }
        }
    }
}

fn told(event: events::Event) -> Event {
    let mut data = event.data;
    data["at"] = json!(event.created_at);
    Event::default().id(event.id.to_string()).event(event.kind).data(data.to_string())
}
