//! The REST API: one file per resource, thin handlers, problem documents, OpenAPI.

mod accept;
mod access;
pub mod compare;
pub mod datasets;
pub mod evaluation;
pub mod evaluations;
mod events;
pub mod evidence;
mod extract;
pub mod health;
mod idempotency;
pub mod leaderboard;
mod listen;
mod local;
mod metrics;
mod middleware;
pub mod models;
mod openapi;
pub mod page;
pub mod problem;
pub mod progress;
pub mod protocols;
mod rate;
pub mod shards;
mod state;
mod streams;
mod table;
mod upload;
pub mod uploads;
mod views;
mod watch;
pub mod webhooks;

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderName;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::TraceLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::store::StoreError;
use crate::store::gc::{self, Rules};
use crate::webhook::Deliverer;

pub use metrics::metrics_router;
pub use problem::{Code, Problem};
pub use state::{AppState, Settings};

/// Routes under a time limit.
fn quick() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(models::router())
        .merge(datasets::router())
        .merge(protocols::router())
        .merge(evaluations::router())
        .merge(evaluation::router())
        .merge(table::router())
        .merge(leaderboard::router())
        .merge(webhooks::router())
        .merge(uploads::router())
        .merge(shards::router())
}

/// Routes that last as long as their bytes, or their waiting, do.
fn slow() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // The form bounds its parts itself; a model may be larger than any other body.
        .merge(models::submission().layer(DefaultBodyLimit::disable()))
        .merge(uploads::pieces().layer(DefaultBodyLimit::disable()))
        .merge(evaluation::waiting_router())
        .merge(events::router())
        .merge(evidence::router())
        .merge(compare::router())
}

/// All routes: the `quick` ones as they come out of `limit`, and all that have to do with anybody's objects as they come
/// out of `guard`.
fn routes(
    limit: impl FnOnce(OpenApiRouter<AppState>) -> OpenApiRouter<AppState>,
    guard: impl FnOnce(OpenApiRouter<AppState>) -> OpenApiRouter<AppState>,
) -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::Described::openapi())
        .merge(health::router())
        .nest("/v1", guard(limit(quick()).merge(slow())))
}

/// The description of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut api = routes(|quick| quick, |all| all).into_openapi();
    openapi::complete(&mut api);
    api
}

/// The same as text: the content of `openapi.yaml`.
pub fn openapi_yaml() -> String {
    openapi().to_yaml().expect("the description is plain data")
}

/// The whole API with its middleware.
pub fn router(state: AppState) -> Router {
    let id = HeaderName::from_static(middleware::REQUEST_ID);
    let patience = state.settings.read_patience;
    let timed = from_fn_with_state(state.clone(), middleware::time_limit);
    let known = from_fn_with_state(state.clone(), access::check);
    let once = from_fn_with_state(state.clone(), idempotency::layer);
    let (router, _) = routes(|quick| quick.layer(once).layer(timed), |all| all.layer(known)).split_for_parts();
    let compressible = DefaultPredicate::new()
        .and(NotForContentType::const_new(evidence::PARQUET))
        .and(NotForContentType::const_new(evidence::SAFETENSORS));
    let around = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(id.clone(), MakeRequestUuid))
        .layer(TraceLayer::new_for_http().make_span_with(middleware::span))
        .layer(PropagateRequestIdLayer::new(id))
        .layer(from_fn(middleware::measure))
        .layer(CompressionLayer::new().compress_when(compressible))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(RequestBodyTimeoutLayer::new(patience));
    router
        .merge(SwaggerUi::new("/docs").url("/openapi.json", openapi()))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(extract::MAX_JSON_BYTES))
        .layer(around)
        .with_state(state)
}

/// Serves until `shutdown`. Then no connection is accepted any more, long polls are answered at once, and what is in
/// flight gets a bounded time to end.
pub async fn serve(listener: TcpListener, mut state: AppState, shutdown: CancellationToken) -> std::io::Result<()> {
    state.shutdown = shutdown.clone();
    let drain: Duration = state.settings.drain_timeout;
    tokio::spawn(sweep(state.clone(), shutdown.clone()));
    // Without certificates to trust, say, there are no deliveries; all else is served.
    let deliveries = Deliverer::new(state.pool.clone(), state.settings.webhooks)
        .inspect_err(|error| tracing::error!(%error, "webhooks cannot be delivered from here"))
        .map(|deliverer| tokio::spawn(deliverer.run(shutdown.clone())));
    let patience = state.settings.read_patience;
    let server = listen::serve(listener, router(state), patience, shutdown.clone());
    let served = tokio::select! {
        ended = server => ended,
        () = async { shutdown.cancelled().await; tokio::time::sleep(drain).await } => {
            tracing::warn!("requests were still in flight {drain:?} after shutdown began");
            Ok(())
        }
    };
    // Attempts that were under way end by their own time limit.
    if let Ok(deliveries) = deliveries {
        deliveries.await.ok();
    }
    served
}

/// An upload that has not grown for this long was interrupted with its server.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Deletes what interrupted uploads left and what has expired, now and every hour.
async fn sweep(state: AppState, shutdown: CancellationToken) {
    loop {
        let swept = async {
            let files = state.artifacts.sweep_uploads(STALE).await?;
            let rules = Rules {
                retention: state.settings.retention,
                upload_hours: state.settings.upload_hours,
                dry_run: false,
            };
            let expired = gc::expire(&state.pool, &state.artifacts, &rules).await?;
            Ok::<_, StoreError>((files, expired))
        };
        match swept.await {
            Ok((0, expired)) if expired.0.is_empty() => {}
            Ok((files, expired)) => tracing::info!(files, ?expired, "what had expired was deleted"),
            Err(error) => tracing::warn!(%error, "what has expired could not be deleted"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
