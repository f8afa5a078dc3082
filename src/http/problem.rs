//! Errors as problem documents (RFC 9457).

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::dataset::DatasetError;
use crate::protocol::{ProtocolError, SpecError};
use crate::store::artifacts::ArtifactError;
use crate::store::{QuotaError, pool};

/// Content type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Declares the codes: identifier, snake_case name, status, title.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $name:literal $status:ident $title:literal;)*) => {
        /// What went wrong, as a word that stays the same between versions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Code::$variant => StatusCode::$status,)* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    BadJson "bad_json" BAD_REQUEST "The body is not JSON";
    BadMultipart "bad_multipart" BAD_REQUEST "The body is not a readable multipart form";
    BadQuery "bad_query" BAD_REQUEST "A query parameter is missing, unknown or malformed";
    BadPath "bad_path" BAD_REQUEST "A path parameter is malformed";
    BadIdempotencyKey "bad_idempotency_key" BAD_REQUEST "The Idempotency-Key is malformed";
    BadOffset "bad_offset" BAD_REQUEST "The Upload-Offset is missing or malformed";
    BrokenBody "broken_body" BAD_REQUEST "The body broke off";
    BadCursor "bad_cursor" BAD_REQUEST "The cursor is not one that this server gave out";
    Unauthorized "unauthorized" UNAUTHORIZED "A usable access key is needed";
    Forbidden "forbidden" FORBIDDEN "The access key does not cover this";
    NoSuchRoute "no_such_route" NOT_FOUND "Nothing lives at this path";
    ModelNotFound "model_not_found" NOT_FOUND "No such model";
    DatasetNotFound "dataset_not_found" NOT_FOUND "No such dataset";
    ProtocolNotFound "protocol_not_found" NOT_FOUND "No such protocol";
    EvaluationNotFound "evaluation_not_found" NOT_FOUND "No such evaluation";
    WebhookNotFound "webhook_not_found" NOT_FOUND "No such webhook";
    DeliveryNotFound "delivery_not_found" NOT_FOUND "No such delivery";
    UploadNotFound "upload_not_found" NOT_FOUND "No such upload";
    LogNotFound "log_not_found" NOT_FOUND "No such log";
    NoSuchCode "no_such_code" NOT_FOUND "No error has this code";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "The path does not take this method";
    NotAcceptable "not_acceptable" NOT_ACCEPTABLE "None of the accepted formats can be produced";
    ModelInUse "model_in_use" CONFLICT "Unfinished evaluations need the model";
    ModelRejected "model_rejected" CONFLICT "The model cannot be evaluated";
    ProtocolTaken "protocol_taken" CONFLICT "Another protocol has this name and version";
    InProgress "in_progress" CONFLICT "The same request is being carried out";
    WebhookDisabled "webhook_disabled" CONFLICT "The webhook is disabled";
    OffsetMismatch "offset_mismatch" CONFLICT "The piece does not continue the upload";
    UploadIncomplete "upload_incomplete" CONFLICT "The upload is not complete";
    EvaluationUnfinished "evaluation_unfinished" CONFLICT "The evaluation has not ended";
    AlreadyEnded "already_ended" CONFLICT "The evaluation has already ended";
    WitnessesExpired "witnesses_expired" GONE "The witnesses were not kept for so long";
    TooLarge "too_large" PAYLOAD_TOO_LARGE "The body is larger than the limit";
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The body has the wrong content type";
    IdempotencyMismatch "idempotency_mismatch" UNPROCESSABLE_ENTITY "The Idempotency-Key belongs to another request";
    InvalidField "invalid_field" UNPROCESSABLE_ENTITY "A field is missing, unknown or has an unusable value";
    InvalidSpec "invalid_spec" UNPROCESSABLE_ENTITY "The spec cannot describe a classifier";
    InvalidProtocol "invalid_protocol" UNPROCESSABLE_ENTITY "The protocol document is invalid";
    UnknownDataset "unknown_dataset" UNPROCESSABLE_ENTITY "The named dataset does not exist";
    UnknownModel "unknown_model" UNPROCESSABLE_ENTITY "The named model does not exist";
    UnknownEvaluation "unknown_evaluation" UNPROCESSABLE_ENTITY "The named evaluation does not exist";
    UnknownUpload "unknown_upload" UNPROCESSABLE_ENTITY "The named upload does not exist";
    HashMismatch "hash_mismatch" UNPROCESSABLE_ENTITY "The file is not the one that was announced";
    UnknownProtocol "unknown_protocol" UNPROCESSABLE_ENTITY "The named protocol does not exist";
    ShapeMismatch "shape_mismatch" UNPROCESSABLE_ENTITY "Model and dataset disagree about the image shape";
    ClassMismatch "class_mismatch" UNPROCESSABLE_ENTITY "The dataset has classes that the model does not know";
    TooManyWitnesses "too_many_witnesses" UNPROCESSABLE_ENTITY "The stored witnesses would exceed the limit";
    TooMuchWork "too_much_work" UNPROCESSABLE_ENTITY "The evaluation would take too many shards";
    NotComparable "not_comparable" UNPROCESSABLE_ENTITY "The two evaluations cannot be compared";
    RateLimited "rate_limited" TOO_MANY_REQUESTS "Too many requests";
    QuotaExceeded "quota_exceeded" TOO_MANY_REQUESTS "The owner is at a limit";
    Internal "internal" INTERNAL_SERVER_ERROR "The server failed";
    StorageFull "storage_full" INSUFFICIENT_STORAGE "The server has no room left";
    Unavailable "unavailable" SERVICE_UNAVAILABLE "A part that the server needs does not answer";
    Timeout "timeout" SERVICE_UNAVAILABLE "The answer took too long";
}

/// An error, as the client receives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(title = "Problem")]
pub struct Problem {
    /// `/problems/<code>`, a page that explains the code.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened this time, and what to do about it.
    pub detail: String,
    /// Stable, snake_case.
    pub code: String,
    /// The parameter or body key at fault, e.g. `attack[0].steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// With `model_in_use`: the evaluations that need the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<Vec<Uuid>>,
    /// With `model_rejected`: why it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejection: Option<crate::store::models::Rejection>,
    /// The header of the same name, in seconds.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{}", code.name()),
            title: code.title().into(),
            status: code.status().as_u16(),
            detail: detail.into(),
            code: code.name().into(),
            field: None,
            evaluations: None,
            rejection: None,
            retry_after: (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(5),
        }
    }

    pub fn at(self, field: impl Into<String>) -> Self {
        let field = field.into();
        Self { field: (!field.is_empty()).then_some(field), ..self }
    }

    /// When it is worth trying again.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// A field of the body that cannot be used.
    pub fn field(field: &str, detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidField, detail).at(field)
    }

    /// Hides the cause from the client and shows it to the operator.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(Code::Internal, "the cause is in the server's log, under this response's x-request-id")
    }

    pub fn unavailable(what: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, what, "not available");
        Self::new(Code::Unavailable, format!("{what} does not answer: try again in a few seconds"))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}: {field}: {} ({})", self.title, self.detail, self.code),
            None => write!(f, "{}: {} ({})", self.title, self.detail, self.code),
        }
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        match error {
            _ if pool::is_outage(&error) => Self::unavailable("the database", error),
            // Postgres cannot store the character U+0000.
            sqlx::Error::Database(e) if matches!(e.code().as_deref(), Some("22021" | "22P05")) => {
                Self::new(Code::InvalidField, "a text contains the character U+0000")
            }
            sqlx::Error::Database(e) if e.is_foreign_key_violation() => {
                Self::new(Code::Unavailable, "something that the request names was deleted just now: ask again")
            }
            other => Self::internal(other),
        }
    }
}

impl From<ArtifactError> for Problem {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::TooLarge { limit } => {
                Self::new(Code::TooLarge, format!("a model may have at most {limit} bytes")).at("file")
            }
            ArtifactError::Upload(detail) => Self::new(Code::BadMultipart, detail).at("file"),
            ArtifactError::Store(e @ object_store::Error::NotFound { .. }) => Self::internal(e),
            other if other.is_full() => {
                tracing::error!(cause = %other, "the artifact store is full");
                Self::new(
                    Code::StorageFull,
                    "the artifact store is full: nothing was kept; the operator must make room",
                )
            }
            other => Self::unavailable("the artifact store", other),
        }
    }
}

impl From<QuotaError> for Problem {
    fn from(error: QuotaError) -> Self {
        let problem = Self::new(Code::QuotaExceeded, error.to_string());
        match error {
            QuotaError::Day { seconds, .. } => problem.retry_after(seconds),
            // Nobody knows; evaluations take minutes.
            QuotaError::Open(_) | QuotaError::Uploads(_) => problem.retry_after(60),
            QuotaError::Storage(_) => problem.at("file"),
        }
    }
}

impl From<DatasetError> for Problem {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::NotFound(_) | DatasetError::Ambiguous { .. } => {
                Self::new(Code::DatasetNotFound, error.to_string())
            }
            DatasetError::Store(e) => Self::unavailable("the artifact store", e),
            other => Self::internal(other),
        }
    }
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        Self::new(Code::InvalidSpec, error.problem).at(format!("spec.{}", error.field))
    }
}

impl From<ProtocolError> for Problem {
    fn from(error: ProtocolError) -> Self {
        Self::new(Code::InvalidProtocol, error.problem).at(error.key)
    }
}

/// Unknown paths.
pub async fn no_such_route(request: Request) -> Problem {
    Problem::new(Code::NoSuchRoute, format!("{} is not a path of this server; /docs lists them", request.uri().path()))
}

/// Known paths, wrong method; the router adds `Allow`.
pub async fn method_not_allowed(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(Code::MethodNotAllowed, format!("{path} does not take {method}; see the Allow header"))
}

/// What an error code means
#[utoipa::path(get, path = "/problems/{code}", tag = "service", params(("code" = String, Path)),
    responses((status = 200, body = CodeView), NotFound))]
pub async fn explain_code(Path(code): Path<String>) -> Result<axum::Json<CodeView>, Problem> {
    let found = Code::ALL.iter().find(|c| c.name() == code);
    let found = found.ok_or_else(|| Problem::new(Code::NoSuchCode, format!("{code:?} is not an error code")))?;
    Ok(axum::Json(CodeView { code: found.name().into(), status: found.status().as_u16(), title: found.title().into() }))
}

/// An error code.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CodeView {
    pub code: String,
    pub status: u16,
    pub title: String,
}

/// Declares types that document one error status in `#[utoipa::path(responses(…))]`.
macro_rules! documented {
    ($($name:ident $status:literal $text:literal;)*) => {$(
        #[doc = $text]
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
                BTreeMap::from([($status.to_owned(), described($text).into())])
            }
        }
    )*};
}

documented! {
    BadRequest "400" "A parameter or the body cannot be read";
    NotFound "404" "It does not exist";
    Unacceptable "406" "None of the accepted formats can be produced";
    Conflict "409" "The present state does not allow it";
    PayloadTooLarge "413" "The body is larger than the limit";
    WrongMediaType "415" "The body has the wrong content type";
    Expired "410" "It was not kept for so long";
    Unprocessable "422" "It is readable, but its content cannot be used";
}

/// A response whose body is a [`Problem`].
pub fn described(text: &str) -> utoipa::openapi::Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(text).content(PROBLEM_JSON, content).build()
}
