//! `/datasets`: what operators have imported.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Json, Path};
use super::problem::*;
use super::state::AppState;
use crate::dataset::Manifest;

/// Every dataset, by name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Datasets {
    pub items: Vec<Manifest>,
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_datasets)).routes(routes!(get_dataset))
}

/// List datasets
#[utoipa::path(get, path = "/datasets", tag = "datasets", responses((status = 200, body = Datasets)))]
async fn list_datasets(State(state): State<AppState>) -> Result<Json<Datasets>, Problem> {
    Ok(Json(Datasets { items: state.catalogue.list().await? }))
}

/// Get a dataset by name or content hash
#[utoipa::path(get, path = "/datasets/{name}", tag = "datasets", params(("name" = String, Path)),
    responses((status = 200, body = Manifest), BadRequest, NotFound))]
async fn get_dataset(State(state): State<AppState>, Path(name): Path<String>) -> Result<Json<Manifest>, Problem> {
    Ok(Json(state.catalogue.get(&name).await?))
}
