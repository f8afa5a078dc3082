//! People who do not give up: every request is repeated until it is answered.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::world::{World, repository};

/// Of every evaluation.
pub const IMAGES: u32 = 128;

/// An accepted evaluation.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub id: Uuid,
    pub recipe: u32,
    /// Whether its owner took it back.
    pub cancelled: bool,
}

#[derive(Clone)]
pub struct Owner {
    client: Client,
    address: String,
    key: String,
    pub model: Uuid,
    /// First image of this owner's evaluations.
    pub recipe: u32,
    /// How often the API gave which answer.
    pub answers: Arc<Mutex<BTreeMap<u16, u64>>>,
}

impl Owner {
    /// Makes a key for `name` and uploads the model.
    pub async fn new(world: &World, address: &str, name: &str, recipe: u32) -> Self {
        let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
            .args(["key", "create", "--owner", name, "--scope", "submit", "--scope", "read", "--data-dir"])
            .arg(world.data.path())
            .env("DATABASE_URL", &world.url)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let key = said.split_whitespace().find(|word| word.starts_with("gauntlet_")).unwrap().to_owned();
        let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let mut owner =
            Self { client, address: address.into(), key, model: Uuid::nil(), recipe, answers: Arc::default() };
        let bytes = std::fs::read(repository("models/digits/standard.pt")).unwrap();
        let spec = json!({"input": [1, 32, 32], "classes": 10}).to_string();
        let form = || Form::new().text("spec", spec.clone()).part("file", Part::bytes(bytes.clone()));
        let model = owner.until_answered(|o| o.request(reqwest::Method::POST, "/v1/models").multipart(form())).await;
        owner.model = id(&model);
        owner
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address)).bearer_auth(&self.key)
    }

    /// The JSON of the first answer that is one. No failure of the service may show as anything but 503.
    async fn until_answered(&self, request: impl Fn(&Self) -> RequestBuilder) -> Value {
        loop {
            if let Ok(response) = request(self).send().await {
                let status = response.status();
                *self.answers.lock().unwrap().entry(status.as_u16()).or_default() += 1;
                match (status, response.json().await) {
                    (StatusCode::SERVICE_UNAVAILABLE, _) | (_, Err(_)) => {}
                    // The same request is still being carried out.
                    (StatusCode::CONFLICT, Ok(Value::Object(problem))) if problem["code"] == "in_progress" => {}
                    (status, Ok(body)) if status.is_success() || status == StatusCode::CONFLICT => return body,
                    (status, Ok(body)) => panic!("{status}: {body}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn submit(&self) -> Uuid {
        let set = json!({"steps": 8, "random_start": true, "attack.linf.epsilon": [0.02, 0.05, 0.1]});
        let body = json!({"model": self.model, "dataset": "digits", "protocol": "pgd-linf", "set": set, "seeds": [5],
            "offset": self.recipe, "images": IMAGES, "witnesses": {"sample": 4}});
        let key = Uuid::new_v4().to_string();
        let request =
            |o: &Self| o.request(reqwest::Method::POST, "/v1/evaluations").header("Idempotency-Key", &key).json(&body);
        id(&self.until_answered(request).await)
    }

    pub async fn until_ended(&self, evaluation: Uuid) -> Value {
        loop {
            let path = format!("/v1/evaluations/{evaluation}?wait=2s");
            let body = self.until_answered(|o| o.request(reqwest::Method::GET, &path)).await;
            if ["succeeded", "failed", "cancelled"].iter().any(|state| body["state"] == *state) {
                return body;
            }
        }
    }

    /// Submits, sometimes takes back, and waits, until told to stop.
    pub async fn work(self, seed: u64, stop: Arc<AtomicBool>) -> Vec<Accepted> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut accepted = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let id = self.submit().await;
            let cancelled = random.next_u32() % 4 == 0;
            if cancelled {
                tokio::time::sleep(Duration::from_millis(u64::from(random.next_u32() % 4000))).await;
                let path = format!("/v1/evaluations/{id}/cancel");
                self.until_answered(|o| o.request(reqwest::Method::POST, &path)).await;
            }
            accepted.push(Accepted { id, recipe: self.recipe, cancelled });
            self.until_ended(id).await;
        }
        accepted
    }
}

fn id(body: &Value) -> Uuid {
    body["id"].as_str().unwrap_or_else(|| panic!("{body}")).parse().unwrap()
}
