//! `/models`

use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::extract::{Json, Path, Query};
use super::idempotency;
use super::page::{self, Page};
use super::problem::*;
use super::state::AppState;
use super::upload::{self, ModelBytes, ModelForm};
use crate::protocol::{Finding, ModelSpec};
use crate::store::artifacts::Uploaded;
use crate::store::models::{self, Deletion, Model, NewModel, ProbeReport, Rejection};
use crate::store::{StoreError, uploads};

/// A submitted model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Model)]
pub struct ModelView {
    pub id: Uuid,
    pub name: String,
    /// SHA-256 over the file's hash and the spec: what makes two submissions the same model.
    pub identity: String,
    /// SHA-256 of the file.
    pub sha256: String,
    pub bytes: u64,
    pub spec: ModelSpec,
    pub state: ModelState,
    /// Why it cannot be evaluated; only of a `rejected` model.
    pub rejection: Option<Rejection>,
    /// What a reader of its results must know.
    pub findings: Vec<Finding>,
    /// What the check measured.
    pub probe: Option<ProbeReport>,
    pub created_at: DateTime<Utc>,
    pub checked_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// A worker has yet to load it and try it out.
    Checking,
    Ready,
    Rejected,
}

impl ModelView {
    fn of(model: Model) -> Result<Self, Problem> {
        let state = match model.state.as_str() {
            "checking" => ModelState::Checking,
            "ready" => ModelState::Ready,
            "rejected" => ModelState::Rejected,
            other => return Err(Problem::internal(format!("model {} is in state {other:?}", model.id))),
        };
        Ok(Self {
            id: model.id,
            name: model.name,
            identity: model.identity,
            sha256: model.sha256,
            bytes: model.bytes as u64,
            spec: model.spec.0,
            state,
            rejection: model.rejection.map(|r| r.0),
            findings: model.findings.0,
            probe: model.probe.map(|p| p.0),
            created_at: model.created_at,
            checked_at: model.checked_at,
        })
    }
}

/// The multipart form of a submission; parts may come in any order.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes a form that is read part by part")]
pub struct ModelUpload {
    /// JSON.
    spec: ModelSpec,
    /// The model's bytes.
    #[schema(value_type = Option<String>, format = Binary, nullable = false)]
    file: Option<Vec<u8>>,
    /// Instead of `file`: the upload that has all of its bytes.
    #[schema(nullable = false)]
    upload: Option<Uuid>,
    /// The beginning of the identity if absent.
    #[schema(nullable = false)]
    name: Option<String>,
}

/// Operations that must answer quickly.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_models)).routes(routes!(get_model, delete_model))
}

/// Operations that take as long as their bytes do.
pub fn submission() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(submit_model))
}

/// Submit a model
///
/// The file is streamed and hashed. A worker then checks the model: `state` goes from `checking` to `ready` or
/// `rejected`. Evaluations may be submitted at once. The same file with the same spec is the same model: submitting it
/// again answers 200 with the model that is there.
#[utoipa::path(post, path = "/models", tag = "models",
    request_body(content = ModelUpload, content_type = "multipart/form-data"),
    responses(
        (status = 201, description = "Stored", body = ModelView, headers(("Location" = String))),
        (status = 200, description = "It was there already", body = ModelView, headers(("Location" = String))),
        BadRequest, Conflict, PayloadTooLarge, WrongMediaType, Unprocessable))]
async fn submit_model(State(state): State<AppState>, caller: Caller, request: Request) -> Result<Response, Problem> {
    let key = idempotency::key(request.headers())?;
    let form = Multipart::from_request(request, &state).await.map_err(|e| match e.status() {
        StatusCode::BAD_REQUEST => {
            Problem::new(Code::UnsupportedMediaType, "send multipart/form-data with the parts spec, file and name")
        }
        _ => Problem::new(Code::BadMultipart, e.body_text()),
    })?;
    // A task of its own: a client that goes away does not cut the work off between two steps.
    tokio::spawn(submit(state, caller, key, form)).await.map_err(Problem::internal)?
}

async fn submit(state: AppState, caller: Caller, key: Option<String>, form: Multipart) -> Result<Response, Problem> {
    let ModelForm { name, spec, bytes } = upload::read(form, &state.artifacts, state.settings.max_model_bytes).await?;
    let Some(key) = key else { return store(state, caller, name, spec, bytes).await };
    // The bytes of a form differ with every attempt; its content does not. An upload's id stands for its bytes, because
    // the upload is gone once its model is there.
    let content = match &bytes {
        ModelBytes::Sent(sent) => models::identity(&sent.sha256, &spec),
        ModelBytes::Pieces(id) => models::identity(&id.to_string(), &spec),
    };
    let name_text = name.clone().unwrap_or_default();
    let print = idempotency::fingerprint(&[b"/v1/models", content.as_bytes(), name_text.as_bytes()]);
    let sent = if let ModelBytes::Sent(sent) = &bytes { Some(sent.clone()) } else { None };
    let (again, owner, artifacts) = (state.clone(), caller.clone(), state.artifacts.clone());
    let work = move |_: &_| async move { store(again, owner, name, spec, bytes).await.into_response() };
    let response = idempotency::once(state, &caller, &key, &print, work).await;
    // If the request was answered before, nobody has taken the file away.
    if let Some(sent) = sent {
        artifacts.discard(&sent).await.ok();
    }
    Ok(response)
}

async fn store(
    state: AppState,
    caller: Caller,
    name: Option<String>,
    spec: ModelSpec,
    bytes: ModelBytes,
) -> Result<Response, Problem> {
    let (file, pieces) = match bytes {
        ModelBytes::Sent(sent) => (sent, None),
        ModelBytes::Pieces(id) => (join(&state, &caller, id).await?, Some(id)),
    };
    let identity = models::identity(&file.sha256, &spec);
    let name = name.unwrap_or_else(|| identity[..12].to_owned());
    let quotas = state.quotas(&caller);
    let new = NewModel { owner: &caller.owner, name: &name, identity: &identity, spec: &spec, quotas };
    let (model, new) = models::insert_joined(&state.pool, &state.artifacts, &file, pieces, &new).await?;
    let location = [(header::LOCATION, format!("/v1/models/{}", model.id))];
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, location, Json(ModelView::of(model)?)).into_response())
}

/// The file that an upload of the caller's own has become.
async fn join(state: &AppState, caller: &Caller, id: Uuid) -> Result<Uploaded, Problem> {
    let unknown = || Problem::new(Code::UnknownUpload, format!("you have no upload {id}")).at("upload");
    let upload = uploads::get(&state.pool, Some(&caller.owner), id).await?.ok_or_else(unknown)?;
    if upload.received < upload.bytes {
        let detail = format!("{} of {} bytes have arrived: send the rest", upload.received, upload.bytes);
        return Err(Problem::new(Code::UploadIncomplete, detail).at("upload"));
    }
    let busy = || {
        let detail = "another upload of yours is being put together: ask again when it is done";
        Problem::new(Code::RateLimited, detail).retry_after(10)
    };
    let _place = state.joins.enter(&caller.owner).ok_or_else(busy)?;
    let file = uploads::join(&state.pool, &state.artifacts, &upload).await?;
    match &upload.sha256 {
        Some(announced) if *announced != file.sha256 => {
            state.artifacts.discard(&file).await.ok();
            let detail = format!("its SHA-256 is {}, not {announced}: delete the upload and send it anew", file.sha256);
            Err(Problem::new(Code::HashMismatch, detail).at("upload"))
        }
        _ => Ok(file),
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(e) => e.into(),
            StoreError::Artifact(e) => e.into(),
            StoreError::Quota(e) => e.into(),
            e @ StoreError::Strangers => Self::internal(e),
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Listing {
    /// Rows of a page, 50 if absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[param(pattern = "^[0-9a-f]{48}$")]
    cursor: Option<String>,
}

/// List models, newest first
#[utoipa::path(get, path = "/models", tag = "models", params(Listing),
    responses((status = 200, body = Page<ModelView>), BadRequest))]
async fn list_models(
    State(state): State<AppState>,
    caller: Caller,
    Query(listing): Query<Listing>,
) -> Result<Json<Page<ModelView>>, Problem> {
    let limit = page::limit(listing.limit)?;
    let after = page::cursor(listing.cursor.as_deref())?;
    let rows = models::list(&state.pool, caller.sees(), after, limit + 1).await?;
    page::page(rows, limit, |m| (m.created_at, m.id), ModelView::of).map(Json)
}

fn not_found(id: Uuid) -> Problem {
    Problem::new(Code::ModelNotFound, format!("there is no model {id}"))
}

/// Get a model
#[utoipa::path(get, path = "/models/{id}", tag = "models", params(("id" = Uuid, Path)),
    responses((status = 200, body = ModelView), BadRequest, NotFound))]
async fn get_model(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<ModelView>, Problem> {
    let model = models::get(&state.pool, caller.sees(), id).await?.ok_or_else(|| not_found(id))?;
    ModelView::of(model).map(Json)
}

/// Delete a model
///
/// Its results stay. Refused while an evaluation needs it.
#[utoipa::path(delete, path = "/models/{id}", tag = "models", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Deleted"), BadRequest, NotFound, Conflict))]
async fn delete_model(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    match models::delete(&state.pool, caller.sees(), id).await? {
        Deletion::NotFound => Err(not_found(id)),
        Deletion::InUse(evaluations) => {
            let detail = format!("cancel its {} unfinished evaluation(s) first, or wait for them", evaluations.len());
            Err(Problem { evaluations: Some(evaluations), ..Problem::new(Code::ModelInUse, detail) })
        }
        Deletion::Done { sha256 } => {
            models::forget_artifact(&state.pool, &state.artifacts, &sha256).await?;
            Ok(StatusCode::NO_CONTENT)
        }
    }
}
