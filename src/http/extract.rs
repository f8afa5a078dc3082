//! Extractors whose failures are problem documents.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::problem::{Code, Problem};

/// Most bytes of a JSON body; the router sets it as the limit of every body that an extractor buffers.
pub const MAX_JSON_BYTES: usize = 1 << 20;

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if kind != "application/json" && !(kind.starts_with("application/") && kind.ends_with("+json")) {
            let detail = format!("send Content-Type: application/json, not {kind:?}");
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Problem::new(Code::TooLarge, format!("a JSON body may have at most {MAX_JSON_BYTES} bytes"))
            }
            _ => Problem::new(Code::BadJson, format!("the body broke off: {}", e.body_text())),
        })?;
        parse_json(&bytes, Code::InvalidField).map(Self)
    }
}

/// Parses JSON. Text that is not JSON is a bad request; JSON that does not fit gets `misfit`, with the key named.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8], misfit: Code) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        if inner.is_data() {
            let path = if path == "." { String::new() } else { path };
            Problem::new(misfit, inner.to_string()).at(path)
        } else {
            Problem::new(Code::BadJson, inner.to_string())
        }
    })?;
    deserializer.end().map_err(|e| Problem::new(Code::BadJson, e.to_string()))?;
    Ok(value)
}

/// Query parameters.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|q| q.contains("%00")) {
            return Err(Problem::new(Code::BadQuery, "a parameter contains the character U+0000"));
        }
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|e| Problem::new(Code::BadQuery, source_text(&e)))
    }
}

/// Path parameters.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.uri.path().contains("%00") {
            return Err(Problem::new(Code::BadPath, "the path contains the character U+0000"));
        }
        let path: Result<axum::extract::Path<T>, PathRejection> =
            axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|e| Problem::new(Code::BadPath, e.body_text()))
    }
}

/// The innermost reason is the one a user can act on.
fn source_text(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
