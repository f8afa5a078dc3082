//! `/webhooks`: who wants to be told what, and how the telling went.

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::extract::{Json, Path, Query};
use super::idempotency::Reserved;
use super::page::{self, Page};
use super::problem::*;
use super::state::AppState;
use crate::store::webhooks::{self, Delivery, NewWebhook, Webhook};
use crate::store::{evaluations, models};
use crate::webhook::{address, sign};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(get_webhook, delete_webhook))
        .routes(routes!(enable_webhook, disable_webhook))
        .routes(routes!(test_webhook))
        .routes(routes!(list_deliveries))
        .routes(routes!(redeliver))
}

/// What happened to an evaluation, as in its stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    State,
    Progress,
    Results,
    AttemptFailed,
    Restart,
}

impl EventKind {
    fn name(self) -> &'static str {
        webhooks::KINDS[self as usize]
    }
}

/// A webhook to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// Where deliveries are POSTed to: `https://`, at an address of the public internet.
    url: String,
    /// What to be told; changes of state if absent.
    #[serde(default)]
    #[schema(nullable = false, min_items = 1, max_items = 5)]
    events: Option<Vec<EventKind>>,
    /// Only of this evaluation.
    #[serde(default)]
    evaluation: Option<Uuid>,
    /// Only of evaluations of this model.
    #[serde(default)]
    model: Option<Uuid>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookView {
    pub id: Uuid,
    pub url: String,
    pub events: Vec<String>,
    pub evaluation: Option<Uuid>,
    pub model: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    /// Since when every attempt has failed.
    pub failing_since: Option<DateTime<Utc>>,
    /// Since when nothing is delivered any more, and why.
    pub disabled_at: Option<DateTime<Utc>>,
    pub disabled_reason: Option<String>,
    /// What deliveries are signed with; shown this once, when the webhook is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub secret: Option<String>,
}

impl WebhookView {
    fn of(webhook: Webhook) -> Self {
        Self {
            id: webhook.id,
            url: webhook.url,
            events: webhook.events,
            evaluation: webhook.evaluation_id,
            model: webhook.model_id,
            created_at: webhook.created_at,
            failing_since: webhook.failing_since,
            disabled_at: webhook.disabled_at,
            disabled_reason: webhook.disabled_reason,
            secret: None,
        }
    }
}

fn not_found(id: Uuid) -> Problem {
    Problem::new(Code::WebhookNotFound, format!("there is no webhook {id}"))
}

async fn find(state: &AppState, caller: &Caller, id: Uuid) -> Result<Webhook, Problem> {
    webhooks::get(&state.pool, caller.sees(), id).await?.ok_or_else(|| not_found(id))
}

/// Make a webhook
///
/// From now on, what happens to the caller's evaluations is POSTed to the URL as
/// `{"type": "evaluation.state", "timestamp": …, "data": {"evaluation": …, "model": …, "event": …, …}}`; `data` also has
/// what the stream of events tells. Signed as Standard Webhooks has it (`webhook-id`, `webhook-timestamp`,
/// `webhook-signature`), tried again for about a day until the receiver answers 2xx. A delivery may arrive twice, with the same
/// `webhook-id`, and later than its successors. `secret` is shown in this answer alone.
#[utoipa::path(post, path = "/webhooks", tag = "webhooks", request_body = WebhookRequest,
    responses(
        (status = 201, description = "Made", body = WebhookView, headers(("Location" = String))),
        BadRequest, PayloadTooLarge, WrongMediaType, Unprocessable))]
async fn create_webhook(
    State(state): State<AppState>,
    caller: Caller,
    reserved: Option<Extension<Reserved>>,
    Json(request): Json<WebhookRequest>,
) -> Result<Response, Problem> {
    address::check(&request.url, state.settings.webhooks.private).map_err(|e| Problem::field("url", e))?;
    let mut kinds: Vec<String> = match &request.events {
        None => vec![EventKind::State.name().into()],
        Some(kinds) if kinds.is_empty() => return Err(Problem::field("events", "name at least one")),
        Some(kinds) => kinds.iter().map(|kind| kind.name().to_owned()).collect(),
    };
    kinds.sort_unstable();
    kinds.dedup();
    // One's own: others' evaluations are not told of, however readable they are.
    if let Some(id) = request.evaluation
        && evaluations::get(&state.pool, id).await?.is_none_or(|e| e.owner != *caller.owner)
    {
        let detail = format!("you have no evaluation {id}");
        return Err(Problem::new(Code::UnknownEvaluation, detail).at("evaluation"));
    }
    if let Some(id) = request.model
        && models::get(&state.pool, Some(&caller.owner), id).await?.is_none()
    {
        return Err(Problem::new(Code::UnknownModel, format!("you have no model {id}")).at("model"));
    }
    let secret = sign::new_secret();
    let new = NewWebhook {
        id: reserved.map_or_else(Uuid::now_v7, |Extension(Reserved(id))| id),
        owner: &caller.owner,
        url: &request.url,
        events: &kinds,
        evaluation: request.evaluation,
        model: request.model,
        secret: &secret,
    };
    let full = || Problem::new(Code::QuotaExceeded, format!("an owner may have at most {} webhooks", webhooks::MOST));
    let webhook = webhooks::insert(&state.pool, &new).await?.ok_or_else(full)?;
    let location = [(header::LOCATION, format!("/v1/webhooks/{}", webhook.id))];
    let view = WebhookView { secret: Some(sign::reveal(&secret)), ..WebhookView::of(webhook) };
    Ok((StatusCode::CREATED, location, Json(view)).into_response())
}

#[derive(Serialize, ToSchema)]
struct Webhooks {
    items: Vec<WebhookView>,
}

/// List webhooks
#[utoipa::path(get, path = "/webhooks", tag = "webhooks", responses((status = 200, body = Webhooks)))]
async fn list_webhooks(State(state): State<AppState>, caller: Caller) -> Result<Json<Webhooks>, Problem> {
    let all = webhooks::list(&state.pool, caller.sees()).await?;
    Ok(Json(Webhooks { items: all.into_iter().map(WebhookView::of).collect() }))
}

/// Get a webhook
#[utoipa::path(get, path = "/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 200, body = WebhookView), BadRequest, NotFound))]
async fn get_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<WebhookView>, Problem> {
    find(&state, &caller, id).await.map(WebhookView::of).map(Json)
}

/// Delete a webhook, with the log of its deliveries
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Deleted"), BadRequest, NotFound))]
async fn delete_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    done(webhooks::delete(&state.pool, caller.sees(), id).await?, id)
}

/// Enable a webhook
///
/// Also one that was disabled because nothing could be delivered. What happened meanwhile is not told.
#[utoipa::path(put, path = "/webhooks/{id}/enabled", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Enabled, now or before"), BadRequest, NotFound))]
async fn enable_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    done(webhooks::enable(&state.pool, caller.sees(), id).await?, id)
}

/// Disable a webhook
#[utoipa::path(delete, path = "/webhooks/{id}/enabled", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Disabled, now or before"), BadRequest, NotFound))]
async fn disable_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    done(webhooks::disable(&state.pool, caller.sees(), id, "disabled by its owner").await?, id)
}

fn done(found: bool, id: Uuid) -> Result<StatusCode, Problem> {
    if found { Ok(StatusCode::NO_CONTENT) } else { Err(not_found(id)) }
}

/// A delivery that was asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Queued {
    /// The delivery's id, and its header `webhook-id`.
    id: Uuid,
}

async fn enabled(state: &AppState, caller: &Caller, id: Uuid) -> Result<Webhook, Problem> {
    let webhook = find(state, caller, id).await?;
    match &webhook.disabled_reason {
        None => Ok(webhook),
        Some(reason) => {
            let detail = format!("{reason}; enable it first: PUT /v1/webhooks/{id}/enabled");
            Err(Problem::new(Code::WebhookDisabled, detail))
        }
    }
}

/// Have a test delivered
///
/// Its `type` is `webhook.test`. How it went stands in the log of deliveries.
#[utoipa::path(post, path = "/webhooks/{id}/test", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 202, description = "It will be delivered", body = Queued), BadRequest, NotFound, Conflict))]
async fn test_webhook(
    State(state): State<AppState>,
    caller: Caller,
    reserved: Option<Extension<Reserved>>,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<Queued>), Problem> {
    enabled(&state, &caller, id).await?;
    let delivery = reserved.map_or_else(Uuid::now_v7, |Extension(Reserved(id))| id);
    webhooks::test(&state.pool, id, delivery).await?;
    Ok((StatusCode::ACCEPTED, Json(Queued { id: delivery })))
}

/// How a delivery went.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryView {
    /// Also the header `webhook-id`.
    pub id: Uuid,
    /// What is sent.
    pub body: Value,
    pub state: DeliveryState,
    /// Attempts begun.
    pub attempts: u32,
    /// When it is tried next; of waiting ones only.
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub attempted_at: Option<DateTime<Utc>>,
    /// Status of the receiver's last answer.
    pub response_status: Option<u16>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    Waiting,
    Delivered,
    /// Given up.
    Failed,
}

impl DeliveryView {
    fn of(delivery: Delivery) -> Result<Self, Problem> {
        let state = match delivery.state.as_str() {
            "waiting" => DeliveryState::Waiting,
            "delivered" => DeliveryState::Delivered,
            "failed" => DeliveryState::Failed,
            other => return Err(Problem::internal(format!("delivery {} is in state {other:?}", delivery.id))),
        };
        Ok(Self {
            id: delivery.id,
            body: delivery.body,
            state,
            attempts: delivery.attempts as u32,
            next_attempt_at: (state == DeliveryState::Waiting).then_some(delivery.not_before),
            attempted_at: delivery.attempted_at,
            response_status: delivery.response_status.map(|status| status as u16),
            error: delivery.error,
            created_at: delivery.created_at,
        })
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
    cursor: Option<String>,
}

/// List a webhook's deliveries, newest first
#[utoipa::path(get, path = "/webhooks/{id}/deliveries", tag = "webhooks", params(("id" = Uuid, Path), Listing),
    responses((status = 200, body = Page<DeliveryView>), BadRequest, NotFound))]
async fn list_deliveries(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(listing): Query<Listing>,
) -> Result<Json<Page<DeliveryView>>, Problem> {
    find(&state, &caller, id).await?;
    let limit = page::limit(listing.limit)?;
    let after = page::cursor(listing.cursor.as_deref())?;
    let rows = webhooks::deliveries(&state.pool, id, after, limit + 1).await?;
    page::page(rows, limit, |d| (d.created_at, d.id), DeliveryView::of).map(Json)
}

/// Have a delivery made once more
///
/// With the same `webhook-id`, and all its attempts.
#[utoipa::path(post, path = "/webhooks/{id}/deliveries/{delivery}/redeliver", tag = "webhooks",
    params(("id" = Uuid, Path), ("delivery" = Uuid, Path)),
    responses((status = 202, description = "It will be delivered", body = Queued), BadRequest, NotFound, Conflict))]
async fn redeliver(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, delivery)): Path<(Uuid, Uuid)>,
) -> Result<(StatusCode, Json<Queued>), Problem> {
    enabled(&state, &caller, id).await?;
    if !webhooks::redeliver(&state.pool, id, delivery).await? {
        let detail = format!("webhook {id} has no delivery {delivery}");
        return Err(Problem::new(Code::DeliveryNotFound, detail));
    }
    Ok((StatusCode::ACCEPTED, Json(Queued { id: delivery })))
}
