//! `/uploads`: a model's file in pieces, for files that one request may not survive.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::extract::{Json, Path};
use super::idempotency::Reserved;
use super::problem::*;
use super::state::AppState;
use crate::store::uploads::{self, NewUpload, Upload};

const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// The content type of pieces, as tus has it.
const PIECE: &str = "application/offset+octet-stream";
/// What is kept at once: less than this is lost when a connection or a server breaks off.
const PART_BYTES: usize = 8 << 20;

/// Operations that must answer quickly.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_uploads, open_upload)).routes(routes!(get_upload, delete_upload))
}

/// The operation that takes as long as its bytes do.
pub fn pieces() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(append))
}

/// An upload to be opened.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// Size of the whole file.
    #[schema(minimum = 1)]
    pub bytes: u64,
    /// Of the whole file, in hexadecimal. With it, an upload that broke off is found again.
    #[serde(default)]
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Upload)]
pub struct UploadView {
    pub id: Uuid,
    /// Size of the whole file.
    pub bytes: u64,
    pub sha256: Option<String>,
    /// How much has arrived: the offset of the next piece. Also the header `Upload-Offset`.
    pub offset: u64,
    pub created_at: DateTime<Utc>,
    /// When it is deleted unless it grows.
    pub expires_at: DateTime<Utc>,
}

impl UploadView {
    fn of(state: &AppState, upload: Upload) -> Self {
        Self {
            id: upload.id,
            bytes: upload.bytes as u64,
            sha256: upload.sha256,
            offset: upload.received as u64,
            created_at: upload.created_at,
            expires_at: upload.grown_at + TimeDelta::hours(state.settings.upload_hours.into()),
        }
    }
}

fn offset_header(offset: u64) -> [(HeaderName, HeaderValue); 2] {
    [(OFFSET, offset.into()), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]
}

fn not_found(id: Uuid) -> Problem {
    Problem::new(Code::UploadNotFound, format!("there is no upload {id}"))
}

/// Open an upload
///
/// Then send the file in pieces (`PATCH`), each from the offset that the answer before told, and name the upload instead of the file
/// when submitting the model. An open upload of the same `sha256` and size is answered with 200: go on from its offset. Its size counts against the
/// owner's storage from now on. Uploads that stop growing are deleted after a while (`expires_at`).
#[utoipa::path(post, path = "/uploads", tag = "models", request_body = UploadRequest,
    responses(
        (status = 201, description = "Opened", body = UploadView, headers(("Location" = String), ("Upload-Offset" = u64))),
        (status = 200, description = "It was open already", body = UploadView, headers(("Location" = String), ("Upload-Offset" = u64))),
        BadRequest, PayloadTooLarge, WrongMediaType, Unprocessable))]
async fn open_upload(
    State(state): State<AppState>,
    caller: Caller,
    reserved: Option<Extension<Reserved>>,
    Json(request): Json<UploadRequest>,
) -> Result<Response, Problem> {
    let limit = state.settings.max_model_bytes;
    if request.bytes == 0 {
        return Err(Problem::field("bytes", "the file is empty"));
    }
    if request.bytes > limit {
        return Err(Problem::new(Code::TooLarge, format!("a model may have at most {limit} bytes")).at("bytes"));
    }
    let sha256 = request.sha256.as_deref();
    if sha256.is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
        return Err(Problem::field("sha256", "it has 64 hexadecimal digits, in lower case"));
    }
    let new = NewUpload {
        id: reserved.map_or_else(Uuid::now_v7, |Extension(Reserved(id))| id),
        owner: &caller.owner,
        bytes: request.bytes,
        sha256,
        quotas: state.quotas(&caller),
    };
    let (upload, new) = uploads::open(&state.pool, &new).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let location = [(header::LOCATION, format!("/v1/uploads/{}", upload.id))];
    let offset = offset_header(upload.received as u64);
    Ok((status, location, offset, Json(UploadView::of(&state, upload))).into_response())
}

#[derive(Serialize, ToSchema)]
struct Uploads {
    items: Vec<UploadView>,
}

/// List open uploads
#[utoipa::path(get, path = "/uploads", tag = "models", responses((status = 200, body = Uploads)))]
async fn list_uploads(State(state): State<AppState>, caller: Caller) -> Result<Json<Uploads>, Problem> {
    let open = uploads::list(&state.pool, caller.sees()).await?;
    Ok(Json(Uploads { items: open.into_iter().map(|upload| UploadView::of(&state, upload)).collect() }))
}

/// Get an upload: how much has arrived
#[utoipa::path(get, path = "/uploads/{id}", tag = "models", params(("id" = Uuid, Path)),
    responses((status = 200, body = UploadView, headers(("Upload-Offset" = u64))), BadRequest, NotFound))]
async fn get_upload(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    let upload = uploads::get(&state.pool, caller.sees(), id).await?.ok_or_else(|| not_found(id))?;
    Ok((offset_header(upload.received as u64), Json(UploadView::of(&state, upload))).into_response())
}

/// Give an upload up
#[utoipa::path(delete, path = "/uploads/{id}", tag = "models", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Deleted"), BadRequest, NotFound))]
async fn delete_upload(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    match uploads::delete(&state.pool, &state.artifacts, caller.sees(), id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_found(id)),
    }
}

/// Send a piece of an upload
///
/// `Upload-Offset` says where it belongs, which must be where the upload ends: else 409, and the answer's `Upload-Offset` says
/// where that is. What arrived before a connection broke off is kept.
#[utoipa::path(patch, path = "/uploads/{id}", tag = "models",
    params(("id" = Uuid, Path), ("Upload-Offset" = u64, Header, description = "Where the piece begins")),
    request_body(content = String, content_type = "application/offset+octet-stream"),
    responses(
        (status = 204, description = "Kept", headers(("Upload-Offset" = u64))),
        BadRequest, NotFound, Conflict, PayloadTooLarge, WrongMediaType))]
async fn append(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if kind != PIECE {
        return Err(Problem::new(Code::UnsupportedMediaType, format!("send Content-Type: {PIECE}, not {kind:?}")));
    }
    let offset = headers.get(OFFSET).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let bad = || Problem::new(Code::BadOffset, "say where the piece begins, in bytes").at("Upload-Offset");
    let offset = offset.ok_or_else(bad)?;
    let upload = uploads::get(&state.pool, caller.sees(), id).await?.ok_or_else(|| not_found(id))?;
    if upload.received as u64 != offset {
        return Ok(elsewhere(upload.received as u64));
    }
    let busy = || {
        let detail = "the owner is sending as many pieces at once as one may: wait for one to be kept";
        Problem::new(Code::RateLimited, detail).retry_after(5)
    };
    let place = state.pieces.enter(&caller.owner).ok_or_else(busy)?;
    // A task of its own: when the client goes away, what it sent is still kept.
    let work = async move {
        let _place = place;
        receive(&state, &upload, offset, body).await
    };
    tokio::spawn(work).await.map_err(Problem::internal)?
}

async fn receive(state: &AppState, upload: &Upload, mut offset: u64, body: Body) -> Result<Response, Problem> {
    let mut body = body.into_data_stream();
    let mut pending: Vec<u8> = Vec::new();
    loop {
        let next = body.next().await;
        let ended = !matches!(next, Some(Ok(_)));
        if let Some(Ok(bytes)) = &next {
            let left = upload.bytes as u64 - offset - pending.len() as u64;
            if bytes.len() as u64 > left {
                let detail = format!("the upload has {} bytes, and the piece goes beyond", upload.bytes);
                return Err(Problem::new(Code::TooLarge, detail));
            }
            pending.extend_from_slice(bytes);
        }
        if pending.len() >= PART_BYTES || (ended && !pending.is_empty()) {
            let part = std::mem::take(&mut pending);
            let length = part.len() as u64;
            if !uploads::append(&state.pool, &state.artifacts, upload.id, offset, part).await? {
                let now = uploads::get(&state.pool, None, upload.id).await?.ok_or_else(|| not_found(upload.id))?;
                return Ok(elsewhere(now.received as u64));
            }
            offset += length;
        }
        match next {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(Problem::new(Code::BrokenBody, format!("the piece broke off: {error}"))),
            None => return Ok((StatusCode::NO_CONTENT, offset_header(offset)).into_response()),
        }
    }
}

/// The upload does not end where the piece begins.
fn elsewhere(offset: u64) -> Response {
    let problem =
        Problem::new(Code::OffsetMismatch, format!("the upload goes on at byte {offset}")).at("Upload-Offset");
    (offset_header(offset), problem).into_response()
}
