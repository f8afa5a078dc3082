//! `/healthz` and `/readyz`

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::Json;
use super::state::AppState;
use crate::protocol::Needs;
use crate::store::pool;
use crate::store::workers::{self, SandboxState};

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`
    pub status: String,
}

/// Whether requests can be served, part by part.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    pub parts: Vec<Part>,
    /// What does not keep the server from serving, but its users from getting results.
    pub warnings: Vec<String>,
    pub version: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// `database`, `migrations` or `artifact_store`.
    pub name: String,
    pub ok: bool,
    /// What is wrong with it.
    pub reason: Option<String>,
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(super::problem::explain_code))
        .routes(routes!(super::openapi::get_openapi))
}

/// Whether the process answers; asks nothing else
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, body = Health)))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".into() })
}

/// Whether requests can be served, and why not
#[utoipa::path(get, path = "/readyz", tag = "service",
    responses((status = 200, body = Readiness), (status = 503, description = "Not ready", body = Readiness)))]
async fn readyz(State(state): State<AppState>) -> Response {
    let migrated = async {
        match pool::is_migrated(&state.pool).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("run `gauntlet migrate`".to_owned()),
            Err(sqlx::Error::Database(_)) => Err("no migration was ever applied: run `gauntlet migrate`".to_owned()),
            Err(_) => Err("unknown while the database does not answer".to_owned()),
        }
    };
    let database = async { sqlx::query("select 1").execute(&state.pool).await.map(drop).map_err(failed) };
    let artifacts = async { state.artifacts.check().await.map_err(failed) };
    let live = async { workers::crew(&state.pool, None, &Needs::default()).await.map_err(failed) };
    let unconfined = async { workers::unconfined(&state.pool).await.map_err(failed) };
    let (database, migrated, artifacts, live, unconfined) =
        tokio::join!(in_time(database), in_time(migrated), in_time(artifacts), in_time(live), in_time(unconfined));
    let parts: Vec<Part> = [("database", database), ("migrations", migrated), ("artifact_store", artifacts)]
        .map(|(name, result)| Part { name: name.into(), ok: result.is_ok(), reason: result.err() })
        .into();
    let ready = parts.iter().all(|part| part.ok);
    let mut warnings = match live {
        Ok(crew) if crew.fitting == 0 => {
            vec!["no worker takes work: evaluations wait until `gauntlet worker` runs".into()]
        }
        _ => Vec::new(),
    };
    warnings.extend(unconfined.unwrap_or_default().into_iter().map(|state| match state {
        SandboxState::Unavailable(why) => format!("a worker refuses models: no sandbox ({why})"),
        SandboxState::Known(_) => "a worker runs models without a sandbox".into(),
    }));
    let version = env!("CARGO_PKG_VERSION").into();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, parts, warnings, version })).into_response()
}

/// Addresses and account names are for the operator alone.
fn failed(error: impl std::fmt::Display) -> String {
    tracing::warn!(%error, "not ready");
    "it fails; the server's log says how".into()
}

async fn in_time<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let limit = Duration::from_secs(2);
    tokio::time::timeout(limit, check).await.unwrap_or_else(|_| Err("no answer within 2 s".into()))
}
