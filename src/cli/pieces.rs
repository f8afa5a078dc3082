//! Sending a large model in pieces, across dropped connections and restarts of the server or of this program.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::multipart::Form;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::client::Client;
use crate::http::Problem;
use crate::http::models::ModelView;
use crate::http::uploads::{UploadRequest, UploadView};
use crate::protocol::ModelSpec;

/// Files from this size on go in pieces.
pub const LARGE: u64 = 32 << 20;
const PIECE: u64 = 16 << 20;
/// How long the server may be away, or fail, before this gives up.
const PATIENCE: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Uploads a file in pieces and makes a model of it. What arrived of the same file before, and was not finished, is not sent again.
pub async fn upload(client: &Client, file: &Path, name: &str, spec: &ModelSpec) -> anyhow::Result<ModelView> {
    let length = tokio::fs::metadata(file).await.with_context(|| file.display().to_string())?.len();
    let path = file.to_owned();
    let sha256 = tokio::task::spawn_blocking(move || hash(&path)).await?.with_context(|| file.display().to_string())?;
    let opening = UploadRequest { bytes: length, sha256: Some(sha256) };
    let open = || client.request(Method::POST, "/uploads").json(&opening);
    let upload: UploadView = persist(open, |_| false).await?.json().await?;
    if upload.offset > 0 {
        eprintln!("Going on from {} of {} MiB that arrived before.", upload.offset >> 20, length >> 20);
    }
    let path = format!("/uploads/{}", upload.id);
    let mut offset = upload.offset;
    while offset < length {
        let piece = read(file.to_owned(), offset).await?;
        let send = || {
            let request = client.request(Method::PATCH, &path).header("upload-offset", offset);
            request.header("content-type", "application/offset+octet-stream").body(piece.clone())
        };
        // Elsewhere: a piece that seemed lost was kept, wholly or in part.
        let answer = persist(send, |status| status == StatusCode::CONFLICT).await?;
        let told = answer.headers().get("upload-offset").and_then(|v| v.to_str().ok()?.parse().ok());
        offset = told.context("the server does not say where the upload goes on")?;
    }
    let submit = || {
        let form = Form::new()
            .text("name", name.to_owned())
            .text("spec", serde_json::to_string(spec).unwrap_or_default())
            .text("upload", upload.id.to_string());
        client
            .request(Method::POST, "/models")
            .header("idempotency-key", format!("upload-{}", upload.id))
            .multipart(form)
    };
    persist(submit, |_| false).await?.json().await.context("the server's answer is not understood")
}

fn hash(file: &PathBuf) -> std::io::Result<String> {
    let (mut file, mut hasher) = (std::fs::File::open(file)?, Sha256::new());
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

/// At most [`PIECE`] bytes from `offset` on.
async fn read(file: PathBuf, offset: u64) -> anyhow::Result<bytes::Bytes> {
    let work = move || {
        let mut bytes = Vec::new();
        let mut opened = std::fs::File::open(&file)?;
        opened.seek(SeekFrom::Start(offset))?;
        opened.take(PIECE).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes.into())
    };
    Ok(tokio::task::spawn_blocking(work).await??)
}

/// Sends until the server answers with success, or as `wanted`. Connections that break off, failures of the server and limits of the
/// moment are waited out; any other refusal is final.
async fn persist(
    request: impl Fn() -> RequestBuilder,
    wanted: impl Fn(StatusCode) -> bool,
) -> anyhow::Result<Response> {
    let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let trouble = match request().send().await {
            Ok(answer) if answer.status().is_success() || wanted(answer.status()) => return Ok(answer),
            Ok(answer) => {
                let status = answer.status();
                let problem = answer.json::<Problem>().await.ok();
                let detail = problem.as_ref().map_or(status.to_string(), |p| format!("{} ({})", p.detail, p.code));
                let passing = problem.is_some_and(|p| ["rate_limited", "in_progress"].contains(&p.code.as_str()));
                if !status.is_server_error() && !passing {
                    bail!(detail);
                }
                anyhow::anyhow!(detail)
            }
            Err(error) => error.into(),
        };
        if start.elapsed() > PATIENCE {
            let minutes = PATIENCE.as_secs() / 60;
            return Err(trouble.context(format!("nothing went through for {minutes} minutes; submit again to go on")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
