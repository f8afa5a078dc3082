//! `/protocols`

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::extract::{Json, Path, Query};
use super::problem::*;
use super::state::AppState;
use crate::protocol::{self, Protocol};
use crate::store::protocols::{self, Stored};

/// A protocol and where it comes from.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = ProtocolInfo)]
pub struct ProtocolView {
    pub name: String,
    pub version: u32,
    pub description: String,
    /// SHA-256 of the document: equal documents are one protocol.
    pub hash: String,
    /// Ships with the server.
    pub builtin: bool,
    /// When it was posted; absent for built-in ones.
    pub created_at: Option<DateTime<Utc>>,
    pub document: Protocol,
}

impl ProtocolView {
    fn of(document: Protocol, created_at: Option<DateTime<Utc>>) -> Self {
        Self {
            name: document.name.clone(),
            version: document.version,
            description: document.description.clone(),
            hash: document.hash(),
            builtin: created_at.is_none(),
            created_at,
            document,
        }
    }
}

/// Built-in protocols, then posted ones by name and version.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Protocols {
    pub items: Vec<ProtocolView>,
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_protocols, post_protocol)).routes(routes!(get_protocol))
}

/// List protocols
#[utoipa::path(get, path = "/protocols", tag = "protocols", responses((status = 200, body = Protocols)))]
async fn list_protocols(State(state): State<AppState>, caller: Caller) -> Result<Json<Protocols>, Problem> {
    let stored = protocols::list(&state.pool, &caller.owner).await?;
    let builtin = protocol::builtins().into_iter().map(|p| ProtocolView::of(p, None));
    let posted = stored.into_iter().map(|s| ProtocolView::of(s.document.0, Some(s.created_at)));
    Ok(Json(Protocols { items: builtin.chain(posted).collect() }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Version {
    /// The newest if absent.
    #[param(minimum = 0)]
    version: Option<u32>,
}

/// Get a protocol
#[utoipa::path(get, path = "/protocols/{name}", tag = "protocols", params(("name" = String, Path), Version),
    responses((status = 200, body = ProtocolView), BadRequest, NotFound))]
async fn get_protocol(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    Query(Version { version }): Query<Version>,
) -> Result<Json<ProtocolView>, Problem> {
    let missing = || Problem::new(Code::ProtocolNotFound, format!("there is no such version of a protocol {name:?}"));
    if let Some(builtin) = protocol::builtin(&name) {
        return match version {
            Some(v) if v != builtin.version => Err(missing()),
            _ => Ok(Json(ProtocolView::of(builtin, None))),
        };
    }
    let stored = protocols::get(&state.pool, &caller.owner, &name, version).await?.ok_or_else(missing)?;
    Ok(Json(ProtocolView::of(stored.document.0, Some(stored.created_at))))
}

/// Post a protocol
///
/// A name and version, once taken, keep their meaning: the same document again answers 200, another one 409.
#[utoipa::path(post, path = "/protocols", tag = "protocols", request_body = Protocol,
    responses(
        (status = 201, description = "Stored", body = ProtocolView, headers(("Location" = String))),
        (status = 200, description = "The same document was there already", body = ProtocolView, headers(("Location" = String))),
        BadRequest, Conflict, PayloadTooLarge, WrongMediaType, Unprocessable))]
async fn post_protocol(
    State(state): State<AppState>,
    caller: Caller,
    Json(document): Json<Value>,
) -> Result<Response, Problem> {
    let document = Protocol::from_json(document, &[])?;
    let taken = |why: &str| Problem::new(Code::ProtocolTaken, why).at("name");
    if protocol::builtin(&document.name).is_some() {
        return Err(taken("a built-in protocol has this name: choose another"));
    }
    if i32::try_from(document.version).is_err() {
        return Err(Problem::new(Code::InvalidProtocol, "must be below 2147483648").at("version"));
    }
    let status = match protocols::insert(&state.pool, &caller.owner, &document).await? {
        Stored::New => StatusCode::CREATED,
        Stored::Same => StatusCode::OK,
        Stored::Full => {
            let detail = format!(
                "an owner may keep at most {} protocols; evaluations also take whole documents",
                protocols::MOST
            );
            return Err(Problem::new(Code::QuotaExceeded, detail));
        }
        Stored::Taken => return Err(taken("another document has this name and version: raise the version")),
    };
    let location = format!("/v1/protocols/{}?version={}", document.name, document.version);
    let stored = protocols::get(&state.pool, &caller.owner, &document.name, Some(document.version)).await?;
    let created_at = stored.map(|s| s.created_at);
    Ok((status, [(header::LOCATION, location)], Json(ProtocolView::of(document, created_at))).into_response())
}
