//! `/evaluations/{id}/table`

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::accept;
use super::access::Caller;
use super::evaluation::find;
use super::extract::{Json, Path};
use super::problem::*;
use super::state::AppState;
use crate::protocol::render;
use crate::protocol::report::Table;
use crate::store::report;

const JSON: &str = "application/json";
const CSV: &str = "text/csv";
const MARKDOWN: &str = "text/markdown";
const LATEX: &str = "application/x-latex";

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(table))
        .routes(routes!(table_json))
        .routes(routes!(table_csv))
        .routes(routes!(table_markdown))
        .routes(routes!(table_latex))
}

/// Get the table, as JSON, CSV, Markdown or LaTeX by `Accept`
///
/// While the evaluation runs, the table holds what has been committed, and `complete` is false.
#[utoipa::path(get, path = "/evaluations/{id}/table", tag = "results", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The table",
            content((Table = "application/json"), (String = "text/csv"), (String = "text/markdown"), (String = "application/x-latex"))),
        BadRequest, NotFound, Unacceptable))]
async fn table(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let format = accept::choose(&headers, &[JSON, CSV, MARKDOWN, LATEX])?;
    render_as(&state, &caller, id, format).await
}

/// Get the table as JSON
#[utoipa::path(get, path = "/evaluations/{id}/table.json", tag = "results", params(("id" = Uuid, Path)),
    responses((status = 200, body = Table), BadRequest, NotFound))]
async fn table_json(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    render_as(&state, &caller, id, JSON).await
}

/// Get the table as CSV
#[utoipa::path(get, path = "/evaluations/{id}/table.csv", tag = "results", params(("id" = Uuid, Path)),
    responses((status = 200, description = "The table", body = String, content_type = "text/csv"), BadRequest, NotFound))]
async fn table_csv(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    render_as(&state, &caller, id, CSV).await
}

/// Get the table as Markdown
#[utoipa::path(get, path = "/evaluations/{id}/table.md", tag = "results", params(("id" = Uuid, Path)),
    responses((status = 200, description = "The table", body = String, content_type = "text/markdown"), BadRequest, NotFound))]
async fn table_markdown(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    render_as(&state, &caller, id, MARKDOWN).await
}

/// Get the table as LaTeX
#[utoipa::path(get, path = "/evaluations/{id}/table.tex", tag = "results", params(("id" = Uuid, Path)),
    responses((status = 200, description = "The table", body = String, content_type = "application/x-latex"), BadRequest, NotFound))]
async fn table_latex(State(state): State<AppState>, caller: Caller, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    render_as(&state, &caller, id, LATEX).await
}

async fn render_as(state: &AppState, caller: &Caller, id: Uuid, format: &'static str) -> Result<Response, Problem> {
    let table: Table = report::table(&state.pool, &find(&state.pool, caller, id).await?).await?;
    let text = match format {
        CSV => render::csv(&table),
        MARKDOWN => render::markdown(&table),
        LATEX => render::latex(&table),
        _ => return Ok(([(header::VARY, "accept")], Json(table)).into_response()),
    };
    let kind = format!("{format}; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind), (header::VARY, "accept".into())], text).into_response())
}
