//! `/evaluations/{id}/verdicts` and `…/witnesses`: the evidence behind a table, streamed shard by shard.

use std::io::Write;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::accept;
use super::access::Caller;
use super::evaluation::find;
use super::extract::Path;
use super::problem::*;
use super::state::AppState;
use crate::store::evidence::{self, ParquetVerdicts, VerdictRow};
use crate::store::shards::{self, DoneShard};
use crate::store::witnesses::MergedWitnesses;
use crate::store::{Artifacts, evaluations};

pub const PARQUET: &str = "application/vnd.apache.parquet";
pub const CSV: &str = "text/csv";
pub const SAFETENSORS: &str = "application/vnd.safetensors";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(verdicts))
        .routes(routes!(verdicts_parquet))
        .routes(routes!(verdicts_csv))
        .routes(routes!(witnesses))
}

/// Get the verdicts, as Parquet or CSV by `Accept`
///
/// One row per image, condition and seed; of the shards committed so far.
#[utoipa::path(get, path = "/evaluations/{id}/verdicts", tag = "evidence", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "Verdicts",
            content(([u8] = "application/vnd.apache.parquet"), (String = "text/csv"))),
        BadRequest, NotFound, Unacceptable))]
async fn verdicts(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    find(&state.pool, &caller, id).await?;
    match accept::choose(&headers, &[PARQUET, CSV])? {
        CSV => csv(state, id).await,
        _ => parquet(state, id).await,
    }
}

/// Get the verdicts as Parquet
#[utoipa::path(get, path = "/evaluations/{id}/verdicts.parquet", tag = "evidence", params(("id" = Uuid, Path)),
    responses((status = 200, description = "Verdicts", body = [u8], content_type = "application/vnd.apache.parquet"),
        BadRequest, NotFound))]
async fn verdicts_parquet(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    find(&state.pool, &caller, id).await?;
    parquet(state, id).await
}

/// Get the verdicts as CSV
#[utoipa::path(get, path = "/evaluations/{id}/verdicts.csv", tag = "evidence", params(("id" = Uuid, Path)),
    responses((status = 200, description = "Verdicts", body = String, content_type = "text/csv"), BadRequest, NotFound))]
async fn verdicts_csv(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    find(&state.pool, &caller, id).await?;
    csv(state, id).await
}

async fn parquet(state: AppState, id: Uuid) -> Result<Response, Problem> {
    let shards = shards::done(&state.pool, id).await?;
    let stream = parquet_stream(state.artifacts, shards);
    Ok(download(Body::from_stream(stream), PARQUET, &format!("verdicts-{id}.parquet")))
}

async fn csv(state: AppState, id: Uuid) -> Result<Response, Problem> {
    let shards = shards::done(&state.pool, id).await?;
    let lines = shard_verdicts(state.artifacts, shards)
        .map(|rows| Ok::<_, BoxError>(Bytes::from(evidence::csv_lines(&rows?)?)));
    let header = futures::stream::once(async { Ok(Bytes::from_static(evidence::CSV_HEADER.as_bytes())) });
    Ok(download(Body::from_stream(header.chain(lines)), CSV, &format!("verdicts-{id}.csv")))
}

/// The verdicts of one shard after the other.
pub fn shard_verdicts(
    artifacts: Artifacts,
    shards: Vec<DoneShard>,
) -> impl Stream<Item = Result<Vec<VerdictRow>, BoxError>> {
    futures::stream::iter(shards).then(move |shard| {
        let artifacts = artifacts.clone();
        async move {
            let bytes = artifacts.get(&shard.verdicts_key).await?;
            Ok(tokio::task::spawn_blocking(|| evidence::from_parquet(bytes)).await??)
        }
    })
}

/// One Parquet file, a row group per shard; a shard and a few chunks are in memory at a time.
fn parquet_stream(
    artifacts: Artifacts,
    shards: Vec<DoneShard>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let (to_client, mut chunks) = mpsc::channel(4);
    tokio::spawn(async move {
        let failures = to_client.clone();
        if let Err(error) = write_parquet(artifacts, shards, to_client).await {
            failures.send(Err(error)).await.ok();
        }
    });
    async_stream::stream! {
        while let Some(chunk) = chunks.recv().await {
            yield chunk;
        }
    }
}

async fn write_parquet(
    artifacts: Artifacts,
    shards: Vec<DoneShard>,
    to: mpsc::Sender<Result<Bytes, BoxError>>,
) -> Result<(), BoxError> {
    let mut file = ParquetVerdicts::new(ChannelWriter(to))?;
    let mut shards = std::pin::pin!(shard_verdicts(artifacts, shards));
    while let Some(rows) = shards.next().await {
        let rows = rows?;
        file = tokio::task::spawn_blocking(move || file.push(&rows).map(|()| file)).await??;
    }
    tokio::task::spawn_blocking(|| file.finish()).await??;
    Ok(())
}

/// Hands written bytes to the response; blocks while the client is slow.
struct ChannelWriter(mpsc::Sender<Result<Bytes, BoxError>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the client is gone");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Get the stored witnesses as safetensors
///
/// Tensors `<condition>/seed-<seed>/witness` [n, channels, height, width] float32 and `…/image` [n] int64, the images'
/// indices in the dataset.
#[utoipa::path(get, path = "/evaluations/{id}/witnesses", tag = "evidence", params(("id" = Uuid, Path)),
    responses((status = 200, description = "Witnesses", body = [u8], content_type = "application/vnd.safetensors"),
        BadRequest, NotFound, Expired))]
async fn witnesses(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    find(&state.pool, &caller, id).await?;
    if let Some(when) = evaluations::witnesses_expired(&state.pool, id).await? {
        let detail = format!("they were deleted on {}; `gauntlet verify` makes them anew", when.format("%Y-%m-%d"));
        return Err(Problem::new(Code::WitnessesExpired, detail));
    }
    let shards = shards::done(&state.pool, id).await?;
    let file = MergedWitnesses::open(&state.artifacts, &shards).await?;
    let bytes = file.bytes();
    let body = Body::from_stream(file.stream(state.artifacts));
    let mut response = download(body, SAFETENSORS, &format!("witnesses-{id}.safetensors"));
    response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    Ok(response)
}

fn download(body: Body, kind: &'static str, name: &str) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let disposition = format!("attachment; filename=\"{name}\"");
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(disposition).expect("names are ASCII"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    response
}
