//! `/evaluations`: submit and list.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Ref, Schema, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::evaluation::{self, EvaluationSummary, EvaluationView};
use super::extract::{Json, Query};
use super::idempotency::Reserved;
use super::middleware;
use super::page::{self, Page};
use super::problem::*;
use super::state::AppState;
use crate::dataset::{DatasetError, Manifest};
use crate::protocol::{self, Condition, ModelSpec, Needs, Protocol, ProtocolError};
use crate::store::evaluations::{self, Filter, NewEvaluation, State as EvaluationState, SubmitError, WitnessPolicy};
use crate::store::models::{self, Model};
use crate::store::protocols;
use crate::telemetry::trace;

/// What to evaluate.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = EvaluationRequest)]
#[serde(deny_unknown_fields)]
pub struct EvaluationRequest {
    pub model: Uuid,
    /// Name or content hash.
    pub dataset: String,
    #[schema(schema_with = name_or_document)]
    pub protocol: ProtocolChoice,
    /// Parameters that differ from the protocol's, by name: `steps` for every attack block, `attack.linf.epsilon` for
    /// those of one norm or label, `attack.0.steps` for one block; `severity` for every corruption block,
    /// `corruption.0.severity` for one; `clean`: false leaves out the clean row. Those for a part go before those for all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Value>)]
    pub set: BTreeMap<String, Value>,
    /// Index of the first image.
    #[serde(default)]
    #[schema(maximum = 2147483647)]
    pub offset: u32,
    /// To the end of the dataset if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2147483647)]
    pub images: Option<u32>,
    /// Distinct.
    #[serde(default = "seed_zero")]
    #[schema(min_items = 1, max_items = 32)]
    pub seeds: Vec<i64>,
    #[serde(default)]
    pub witnesses: WitnessPolicy,
    /// Higher is served first.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: i32,
    /// What the workers that run it must have; any worker does if absent.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
}

/// A protocol's name (its newest version), or a whole document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProtocolChoice {
    Named(String),
    /// Parsed apart, so that errors can name the key at fault.
    Inline(Value),
}

fn name_or_document() -> Schema {
    let name = ObjectBuilder::new().schema_type(Type::String);
    let either = OneOfBuilder::new().item(name).item(Ref::from_schema_name("Protocol"));
    either.description(Some("A protocol's name (its newest version), or a whole document")).into()
}

fn seed_zero() -> Vec<i64> {
    vec![0]
}

const MAX_SEEDS: usize = 32;
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(submit_evaluation, list_evaluations))
}

/// Submit an evaluation
///
/// Everything that can be checked is checked now; the work is then queued. An evaluation of a model that is still being
/// checked waits for the outcome.
#[utoipa::path(post, path = "/evaluations", tag = "evaluations", request_body = EvaluationRequest,
    responses(
        (status = 202, description = "Queued", body = EvaluationView, headers(("Location" = String), ("Retry-After" = u64))),
        BadRequest, Conflict, PayloadTooLarge, WrongMediaType, Unprocessable))]
async fn submit_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    reserved: Option<Extension<Reserved>>,
    headers: HeaderMap,
    Json(request): Json<EvaluationRequest>,
) -> Result<Response, Problem> {
    check_numbers(&request)?;
    request.needs.check().map_err(|e| Problem::field(&format!("needs.{}", e.key), e.problem))?;
    let model = models::get(&state.pool, caller.sees(), request.model).await?.ok_or_else(|| no_model(request.model))?;
    if model.state == "rejected" {
        return Err(rejected(&model));
    }
    let dataset = dataset(&state, &request.dataset).await?;
    check_fit(&dataset, &model.spec)?;
    let images = slice(&request, &dataset)?;
    let protocol = resolve(&state, &caller.owner, &request).await?;
    let scene = dataset.scene(state.settings.pictures.clone());
    let conditions = protocol.conditions_for(&scene).map_err(at_fault)?;
    if let Some(problem) = conditions.iter().find_map(|condition| condition.unsuited(&model.spec)) {
        return Err(Problem::field("protocol", problem));
    }
    let new = NewEvaluation {
        id: reserved.map_or_else(Uuid::now_v7, |Extension(Reserved(id))| id),
        owner: &caller.owner,
        model: model.id,
        dataset: &dataset,
        first_image: request.offset,
        images,
        protocol: &protocol,
        conditions: &conditions,
        seeds: &request.seeds,
        witnesses: request.witnesses,
        priority: request.priority,
        needs: &request.needs,
        request_id: middleware::request_id(&headers),
        quotas: state.quotas(&caller),
    };
    check_witnesses(&new, &conditions, state.settings.max_witness_bytes)?;
    let stored = evaluations::insert(&state.pool, &new).await.map_err(|error| match error {
        SubmitError::NoModel => no_model(request.model),
        SubmitError::Rejected(model) => rejected(&model),
        SubmitError::Quota(e) => e.into(),
        SubmitError::TooManyShards(_) => Problem::new(Code::TooMuchWork, error.to_string()).at("images"),
        SubmitError::Database(e) => e.into(),
    })?;
    tracing::info!(evaluation = %stored.id, model = %stored.model_id, "evaluation queued");
    trace::of(stored.id, tracing::info_span!("submit", evaluation = %stored.id)).in_scope(|| ());
    let location = [(header::LOCATION, format!("/v1/evaluations/{}", stored.id))];
    let answer = evaluation::answer(&evaluation::view(&state.pool, stored).await?);
    Ok((StatusCode::ACCEPTED, location, answer).into_response())
}

fn check_numbers(request: &EvaluationRequest) -> Result<(), Problem> {
    let seeds = &request.seeds;
    if !(1..=MAX_SEEDS).contains(&seeds.len()) {
        return Err(Problem::field("seeds", format!("give 1 to {MAX_SEEDS} seeds, not {}", seeds.len())));
    }
    if let Some(twice) = (1..seeds.len()).find(|&i| seeds[..i].contains(&seeds[i])) {
        return Err(Problem::field(&format!("seeds[{twice}]"), format!("seed {} occurs twice", seeds[twice])));
    }
    if !PRIORITIES.contains(&request.priority) {
        return Err(Problem::field("priority", format!("must be -100 to 100, not {}", request.priority)));
    }
    Ok(())
}

fn no_model(id: Uuid) -> Problem {
    Problem::new(Code::UnknownModel, format!("there is no model {id}")).at("model")
}

fn rejected(model: &Model) -> Problem {
    let rejection = model.rejection.as_ref().map(|r| r.0.clone());
    let why = rejection.as_ref().map_or(String::new(), |r| format!(" ({}): {}", r.code, r.found));
    let problem = Problem::new(Code::ModelRejected, format!("model {} was rejected{why}", model.id));
    Problem { rejection, ..problem.at("model") }
}

async fn dataset(state: &AppState, name: &str) -> Result<Manifest, Problem> {
    state.catalogue.get(name).await.map_err(|error| match error {
        DatasetError::NotFound(_) | DatasetError::Ambiguous { .. } => {
            Problem::new(Code::UnknownDataset, error.to_string()).at("dataset")
        }
        other => other.into(),
    })
}

fn check_fit(dataset: &Manifest, spec: &ModelSpec) -> Result<(), Problem> {
    let shape = dataset.shape;
    let [channels, height, width] = spec.input;
    if [shape.channels, shape.height, shape.width] != spec.input {
        let detail = format!(
            "images of dataset {} are {shape} (channels×height×width), the model takes {channels}×{height}×{width}",
            dataset.name
        );
        return Err(Problem::new(Code::ShapeMismatch, detail).at("dataset"));
    }
    if dataset.classes > spec.classes {
        let (name, has, knows) = (&dataset.name, dataset.classes, spec.classes);
        let detail = format!("dataset {name} has {has} classes, the model answers with {knows}");
        return Err(Problem::new(Code::ClassMismatch, detail).at("dataset"));
    }
    Ok(())
}

/// How many images are asked for.
fn slice(request: &EvaluationRequest, dataset: &Manifest) -> Result<u32, Problem> {
    let has = dataset.images.min(i32::MAX as u64) as u32;
    if request.offset >= has {
        return Err(Problem::field(
            "offset",
            format!("dataset {} has {has} images; offset counts from 0", dataset.name),
        ));
    }
    let rest = has - request.offset;
    match request.images.unwrap_or(rest) {
        0 => Err(Problem::field("images", "ask for at least one image")),
        n if n > rest => Err(Problem::field(
            "images",
            format!("dataset {} has {rest} images from offset {} on, not {n}", dataset.name, request.offset),
        )),
        n => Ok(n),
    }
}

/// The chosen protocol with the request's settings applied.
async fn resolve(state: &AppState, owner: &str, request: &EvaluationRequest) -> Result<Protocol, Problem> {
    let document = match &request.protocol {
        ProtocolChoice::Inline(document) => document.clone(),
        ProtocolChoice::Named(name) => {
            let found = match protocol::builtin(name) {
                Some(builtin) => Some(builtin),
                None => protocols::get(&state.pool, owner, name, None).await?.map(|s| s.document.0),
            };
            let unknown = || {
                let detail = format!("there is no protocol {name:?}; GET /v1/protocols lists them");
                Problem::new(Code::UnknownProtocol, detail).at("protocol")
            };
            serde_json::to_value(found.ok_or_else(unknown)?).map_err(Problem::internal)?
        }
    };
    let mut settings: Vec<(String, Value)> = request.set.clone().into_iter().collect();
    // What names a part of the document wins over what names all of it.
    settings.sort_by_key(|(name, _)| name.contains('.'));
    Protocol::from_json(document, &settings).map_err(at_fault)
}

/// Points at the request's key.
fn at_fault(error: ProtocolError) -> Problem {
    let field = match error.key.strip_prefix("--set ") {
        Some(setting) => format!("set.{setting}"),
        None if error.key.is_empty() => "protocol".into(),
        None => format!("protocol.{}", error.key),
    };
    Problem::from(error).at(field)
}

fn check_witnesses(new: &NewEvaluation<'_>, conditions: &[Condition], limit: u64) -> Result<(), Problem> {
    let images = new.witnesses.images(new.images);
    let estimate = evaluations::witness_bytes(images, conditions, new.seeds.len(), new.dataset.shape);
    if estimate <= limit {
        return Ok(());
    }
    let each = estimate / u64::from(images.max(1));
    let fits = limit / each.max(1);
    let detail = format!(
        "witnesses of {images} images could take {estimate} bytes, more than the limit of {limit}: \
         ask for {{\"sample\": {fits}}} or fewer, or \"none\"; witnesses that are not stored can be regenerated"
    );
    Err(Problem::new(Code::TooManyWitnesses, detail).at("witnesses"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Listing {
    model: Option<Uuid>,
    #[param(inline)]
    state: Option<EvaluationState>,
    /// A protocol's name.
    protocol: Option<String>,
    /// Rows of a page, 50 if absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[param(pattern = "^[0-9a-f]{48}$")]
    cursor: Option<String>,
}

/// List evaluations, newest first
#[utoipa::path(get, path = "/evaluations", tag = "evaluations", params(Listing),
    responses((status = 200, body = Page<EvaluationSummary>), BadRequest))]
async fn list_evaluations(
    State(state): State<AppState>,
    caller: Caller,
    Query(listing): Query<Listing>,
) -> Result<Json<Page<EvaluationSummary>>, Problem> {
    let limit = page::limit(listing.limit)?;
    let after = page::cursor(listing.cursor.as_deref())?;
    let owner = caller.sees().map(str::to_owned);
    let filter = Filter { owner, model: listing.model, state: listing.state, protocol: listing.protocol };
    let rows = evaluations::list(&state.pool, &filter, after, limit + 1).await?;
    page::page(rows, limit, |e| (e.created_at, e.id), |e| Ok(EvaluationSummary::of(&e))).map(Json)
}
