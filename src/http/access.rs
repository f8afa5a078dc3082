//! Who asks: access keys, scopes, rate limits.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sqlx::PgPool;

use super::local;
use super::problem::{Code, Problem};
use super::state::AppState;
use crate::store::LOCAL_OWNER;
use crate::store::keys::{self, Holder, Scope, Secret};

/// On whose behalf a request is made.
#[derive(Debug, Clone)]
pub struct Caller {
    pub owner: Arc<str>,
    scopes: Arc<[Scope]>,
    /// The key's id; the operator on loopback has none.
    key: Option<Arc<str>>,
    /// Keys have limits; the operator on loopback has none.
    pub limited: bool,
}

impl Caller {
    fn operator() -> Self {
        Self { owner: LOCAL_OWNER.into(), scopes: [Scope::Admin].into(), key: None, limited: false }
    }

    fn holder(holder: Holder) -> Self {
        let key = Some(holder.key.into());
        Self { owner: holder.owner.into(), scopes: holder.scopes.into(), key, limited: true }
    }

    /// The only owner whose objects this caller may see, besides shared results; `None`: everybody's.
    pub fn sees(&self) -> Option<&str> {
        (!self.scopes.contains(&Scope::Admin)).then_some(&*self.owner)
    }

    /// Whether the key can still be used; for answers that last.
    pub async fn still_known(&self, pool: &PgPool) -> Result<bool, sqlx::Error> {
        match &self.key {
            Some(key) => keys::usable(pool, key).await,
            None => Ok(!keys::any(pool).await?),
        }
    }

    fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal("a route takes a caller and stands outside of the access check"))
    }
}

/// Lets a request pass that comes with a usable key whose scopes cover the method, at a bearable rate.
pub async fn check(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match admit(&state, request.method(), request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn admit(state: &AppState, method: &Method, headers: &HeaderMap) -> Result<Caller, Problem> {
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        if !state.settings.open || keys::any(&state.pool).await? {
            let detail = "send an access key: `Authorization: Bearer gauntlet_…`; `gauntlet key create` makes one";
            return Err(Problem::new(Code::Unauthorized, detail));
        }
        if !local::is(headers) {
            let detail = "without access keys only this machine is served, by its own name: neither web pages from elsewhere \
                          nor proxies; `gauntlet key create` makes a key";
            return Err(Problem::new(Code::Forbidden, detail));
        }
        return Ok(Caller::operator());
    };
    let given = given.to_str().ok().and_then(|text| text.split_once(' '));
    let secret = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let secret = secret.and_then(|(_, key)| Secret::parse(key.trim()));
    let holder = match &secret {
        Some(secret) => keys::authenticate(&state.pool, secret).await?,
        None => None,
    };
    // One answer for all of them, so that nobody learns which keys there are.
    let useless = || Problem::new(Code::Unauthorized, "the access key is unknown, expired or revoked");
    let caller = Caller::holder(holder.ok_or_else(useless)?);
    if let Err(seconds) = state.rates.take(&caller.owner) {
        let detail =
            format!("more than {} requests a minute: try again in {seconds} s", state.settings.rate_per_minute);
        return Err(Problem::new(Code::RateLimited, detail).retry_after(seconds));
    }
    let needed = if method.is_safe() { Scope::Read } else { Scope::Submit };
    if !caller.may(needed) {
        return Err(Problem::new(Code::Forbidden, format!("the access key lacks the scope {needed}")));
    }
    Ok(caller)
}
