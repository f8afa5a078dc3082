//! Reading the multipart form that submits a model.

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use axum::http::StatusCode;
use futures::TryStreamExt;
use uuid::Uuid;

use super::extract::parse_json;
use super::problem::{Code, Problem};
use crate::protocol::ModelSpec;
use crate::store::Artifacts;
use crate::store::artifacts::{ArtifactError, Uploaded};

/// Most bytes of the small parts.
const MAX_PART_BYTES: usize = 64 << 10;
/// Longest name of a model, in characters.
const MAX_NAME: usize = 200;

/// What a form says about a model.
pub struct ModelForm {
    pub name: Option<String>,
    pub spec: ModelSpec,
    pub bytes: ModelBytes,
}

/// Where a form's file is; not yet among the models.
pub enum ModelBytes {
    /// It was a part of the form, and lies in the artifact store.
    Sent(Uploaded),
    /// It came before, in the pieces of this upload.
    Pieces(Uuid),
}

/// Reads the parts `spec`, `file` (or `upload`) and `name` in any order. On failure nothing of the file is left.
pub async fn read(form: Multipart, artifacts: &Artifacts, limit: u64) -> Result<ModelForm, Problem> {
    let mut upload = None;
    let parts = read_parts(form, artifacts, limit, &mut upload).await;
    let missing = |part| Err(Problem::field(part, format!("the form has no part {part:?}")));
    let (problem, upload) = match (parts, upload.take()) {
        (Ok((name, Some(spec), None)), Some(sent)) => {
            return Ok(ModelForm { name, spec, bytes: ModelBytes::Sent(sent) });
        }
        (Ok((name, Some(spec), Some(id))), None) => return Ok(ModelForm { name, spec, bytes: ModelBytes::Pieces(id) }),
        (Err(problem), there) => (Err(problem), there),
        (Ok((_, None, _)), there) => (missing("spec"), there),
        (Ok((_, _, Some(_))), there) => (Err(Problem::field("upload", "the form has a file as well: send one")), there),
        (Ok((_, _, None)), there) => (missing("file"), there),
    };
    if let Some(upload) = upload
        && let Err(error) = artifacts.discard(&upload).await
    {
        tracing::error!(%error, key = %upload.key, "an unwanted upload could not be deleted");
    }
    problem
}

async fn read_parts(
    mut form: Multipart,
    artifacts: &Artifacts,
    limit: u64,
    upload: &mut Option<Uploaded>,
) -> Result<(Option<String>, Option<ModelSpec>, Option<Uuid>), Problem> {
    let (mut name, mut spec, mut pieces) = (None, None, None);
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let twice = |part| Err(Problem::field(part, format!("the form has more than one part {part:?}")));
        match field.name().unwrap_or("") {
            "spec" if spec.is_some() => return twice("spec"),
            "name" if name.is_some() => return twice("name"),
            "file" if upload.is_some() => return twice("file"),
            "upload" if pieces.is_some() => return twice("upload"),
            "upload" => pieces = Some(read_id(&small(field, "upload").await?)?),
            "spec" => spec = Some(read_spec(&small(field, "spec").await?)?),
            "name" => name = Some(read_name(small(field, "name").await?)?),
            "file" => {
                let stored = upload
                    .insert(artifacts.upload(field.map_err(|e| ArtifactError::Upload(e.to_string())), limit).await?);
                if stored.bytes == 0 {
                    return Err(Problem::field("file", "the file is empty"));
                }
            }
            other => {
                return Err(Problem::field(
                    other,
                    "the form has the parts spec, file (or upload) and name; not this one",
                ));
            }
        }
    }
    Ok((name, spec, pieces))
}

fn read_id(bytes: &[u8]) -> Result<Uuid, Problem> {
    Uuid::try_parse_ascii(bytes).map_err(|_| Problem::field("upload", "it is not the id of an upload"))
}

async fn small(mut field: Field<'_>, part: &str) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_PART_BYTES {
            return Err(Problem::new(Code::TooLarge, format!("it may have at most {MAX_PART_BYTES} bytes")).at(part));
        }
    }
    Ok(bytes)
}

fn read_spec(bytes: &[u8]) -> Result<ModelSpec, Problem> {
    let spec: ModelSpec = parse_json(bytes, Code::InvalidSpec).map_err(|problem| {
        let field = problem.field.as_ref().map_or("spec".into(), |key| format!("spec.{key}"));
        problem.at(field)
    })?;
    spec.validate()?;
    Ok(spec)
}

/// Checks a model's name.
pub fn read_name(bytes: Vec<u8>) -> Result<String, Problem> {
    let name = String::from_utf8(bytes).map_err(|_| Problem::field("name", "it is not UTF-8"))?;
    let length = name.chars().count();
    if !(1..=MAX_NAME).contains(&length) || name.chars().any(char::is_control) {
        let detail = format!("it must have 1 to {MAX_NAME} characters and no control characters");
        return Err(Problem::field("name", detail));
    }
    Ok(name)
}

fn broken(error: MultipartError) -> Problem {
    let code = if error.status() == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::BadMultipart };
    Problem::new(code, error.body_text())
}
