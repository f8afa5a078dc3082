//! Talking to a server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::pieces;
use crate::http::Problem;
use crate::http::evaluation::{EvaluationSummary, EvaluationView};
use crate::http::evaluations::EvaluationRequest;
use crate::http::models::{ModelState, ModelView};
use crate::http::page::Page;
use crate::protocol::ModelSpec;
use crate::protocol::report::Table;

/// Which server to talk to.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Address of the server.
    #[arg(long, env = "GAUNTLET_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Access key, where the server asks for one.
    #[arg(long, env = "GAUNTLET_KEY", value_name = "KEY", hide_env_values = true)]
    key: Option<Key>,
}

/// An access key on the command line; not to be seen in debug output.
#[derive(Clone)]
struct Key(String);

impl std::str::FromStr for Key {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A server's API.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// The server answers a long poll after this at the latest.
const WAIT: Duration = Duration::from_secs(30);

impl Server {
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.server, self.key.as_ref().map(|key| key.0.as_str()))
    }
}

impl Client {
    pub fn new(base: &str, key: Option<&str>) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).context("the access key is not one")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http =
            reqwest::Client::builder().default_headers(headers).connect_timeout(Duration::from_secs(10)).build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1{path}", self.base))
    }

    /// Sends, and turns a problem document into an error that says what it says.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let unreachable = || format!("no server answers at {}: is `gauntlet up` running?", self.base);
        let response = request.send().await.with_context(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => {
                let field = problem.field.map_or(String::new(), |f| format!("{f}: "));
                bail!("{field}{} ({})", problem.detail, problem.code)
            }
            Err(_) => bail!("{status}: {}", text.chars().take(500).collect::<String>()),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        self.send(request).await?.json().await.context("the server's answer is not understood")
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// Uploads a model file; it is streamed, or sent in pieces if it is large, and an equal model that is there already is returned instead.
    pub async fn upload(&self, file: &Path, name: &str, spec: &ModelSpec) -> anyhow::Result<ModelView> {
        let opened = tokio::fs::File::open(file).await.with_context(|| file.display().to_string())?;
        let length = opened.metadata().await?.len();
        if length >= pieces::LARGE {
            return pieces::upload(self, file, name, spec).await;
        }
        let form = Form::new()
            .text("name", name.to_owned())
            .text("spec", serde_json::to_string(spec)?)
            .part("file", Part::stream_with_length(opened, length).file_name("model"));
        self.json(self.request(Method::POST, "/models").multipart(form)).await
    }

    pub async fn model(&self, id: Uuid) -> anyhow::Result<ModelView> {
        self.json(self.request(Method::GET, &format!("/models/{id}"))).await
    }

    pub async fn dataset(&self, name: &str) -> anyhow::Result<crate::dataset::Manifest> {
        self.json(self.request(Method::GET, &format!("/datasets/{name}"))).await
    }

    pub async fn submit(&self, request: &EvaluationRequest) -> anyhow::Result<EvaluationView> {
        self.post("/evaluations", request).await
    }

    pub async fn evaluation(&self, id: Uuid) -> anyhow::Result<EvaluationView> {
        self.json(self.request(Method::GET, &format!("/evaluations/{id}"))).await
    }

    /// The newest evaluations, at most `limit`.
    pub async fn evaluations(&self, limit: u32) -> anyhow::Result<Vec<EvaluationSummary>> {
        let page: Page<_> = self.json(self.request(Method::GET, &format!("/evaluations?limit={limit}"))).await?;
        Ok(page.items)
    }

    pub async fn cancel(&self, id: Uuid) -> anyhow::Result<EvaluationView> {
        self.post(&format!("/evaluations/{id}/cancel"), &serde_json::json!({})).await
    }

    pub async fn table(&self, id: Uuid) -> anyhow::Result<Table> {
        self.json(self.request(Method::GET, &format!("/evaluations/{id}/table.json"))).await
    }

    /// The table as the server renders it: `csv`, `md` or `tex`.
    pub async fn rendered_table(&self, id: Uuid, suffix: &str) -> anyhow::Result<String> {
        let request = self.request(Method::GET, &format!("/evaluations/{id}/table.{suffix}"));
        Ok(self.send(request).await?.text().await?)
    }

    /// Follows an evaluation to its end by long polls; `see` is shown every change.
    pub async fn follow(&self, id: Uuid, mut see: impl FnMut(&EvaluationView)) -> anyhow::Result<EvaluationView> {
        let mut tag: Option<String> = None;
        loop {
            let mut request = self.request(Method::GET, &format!("/evaluations/{id}?wait={}s", WAIT.as_secs()));
            if let Some(tag) = &tag {
                request = request.header("if-none-match", tag);
            }
            let response = request.send().await.with_context(|| format!("the server at {} has gone", self.base))?;
            if response.status() == reqwest::StatusCode::NOT_MODIFIED {
                continue;
            }
            tag = response.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_owned);
            let view: EvaluationView = response.error_for_status()?.json().await?;
            see(&view);
            if view.summary.state.is_terminal() {
                return Ok(view);
            }
        }
    }

    /// Waits until a model has been checked; an error says why it was rejected.
    pub async fn checked(&self, id: Uuid) -> anyhow::Result<ModelView> {
        loop {
            let model = self.model(id).await?;
            match model.state {
                ModelState::Ready => return Ok(model),
                ModelState::Rejected => {
                    let (code, found) = model.rejection.map_or_else(Default::default, |r| (r.code, r.found));
                    bail!("the model was rejected ({code}): {found}")
                }
                ModelState::Checking => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    }
}
