//! The API's description, generated from the code.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;
use utoipa::openapi::RefOr;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

use super::problem::{Problem, described};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gauntlet",
        description = "Measures how robust image classifiers are: submit a model, queue an evaluation, read its table. \
                       Every error is a problem document (RFC 9457) with a stable `code`; times are UTC.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(Problem)),
    tags(
        (name = "models", description = "Submitted artifacts and what is known about them"),
        (name = "datasets", description = "What operators have imported"),
        (name = "protocols", description = "Named, versioned lists of conditions"),
        (name = "evaluations", description = "The jobs: model × dataset slice × protocol × seeds"),
        (name = "results", description = "Tables, rankings, comparisons"),
        (name = "evidence", description = "Verdicts and witnesses"),
        (name = "webhooks", description = "Being told by HTTP what happens to evaluations"),
        (name = "service", description = "Health and description of the service"),
    )
)]
pub struct Described;

/// The name of the security scheme.
const BEARER: &str = "access_key";

/// Adds what every operation takes and can answer.
pub fn complete(api: &mut utoipa::openapi::OpenApi) {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An access key, `gauntlet_…`. On loopback, as long as no key was made, none is needed."))
        .build();
    api.components.get_or_insert_default().add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    for (path, item) in &mut api.paths.paths {
        if let Some(operation) = item.post.as_mut().filter(|_| path.starts_with("/v1/")) {
            operation.parameters.get_or_insert_default().push(idempotency_key().into());
            add(operation, "409", "The same request is being carried out");
            add(operation, "422", "The Idempotency-Key belongs to another request");
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            if path.starts_with("/v1/") {
                operation.security =
                    Some(vec![SecurityRequirement::new(BEARER, [] as [&str; 0]), SecurityRequirement::default()]);
                add(operation, "401", "A usable access key is needed");
                add(operation, "403", "The access key lacks the scope");
                add(
                    operation,
                    "429",
                    "Too many requests, or the owner is at a limit; `Retry-After` says when to try again",
                );
                add(operation, "500", "The server failed; the cause is in its log");
                add(operation, "503", "A part that the server needs does not answer");
            }
            for response in operation.responses.responses.values_mut() {
                // The specification wants a description even where the schema says it all.
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description = "As asked for".into();
                }
            }
        }
    }
}

fn idempotency_key() -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Chosen by the client. Within a day, the same request with the same key is carried out once, and answered \
             as it was the first time, with `Idempotency-Replayed: true`; another request with it is refused.",
        ))
        .schema(Some(text))
        .build()
}

fn add(operation: &mut Operation, status: &str, text: &str) {
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| described(text).into());
}

/// This description
#[utoipa::path(get, path = "/openapi.yaml", tag = "service",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/yaml")))]
pub async fn get_openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/yaml")], super::openapi_yaml())
}
