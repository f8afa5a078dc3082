//! Listings in pages.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::{Code, Problem};

/// One page of a listing, newest first.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Pass as `cursor` to get the next page; `null` on the last one.
    #[schema(required)]
    pub next: Option<String>,
}

/// Where a page begins: after the row of this time and id.
pub type Cursor = (DateTime<Utc>, Uuid);

/// Most and default rows of a page.
const MAX_LIMIT: i64 = 200;
const DEFAULT_LIMIT: i64 = 50;

/// A checked page size.
pub fn limit(asked: Option<i64>) -> Result<i64, Problem> {
    let limit = asked.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::new(Code::BadQuery, format!("limit must be 1 to {MAX_LIMIT}, not {limit}")).at("limit"))
}

/// Reads a cursor that [`page`] wrote.
pub fn cursor(text: Option<&str>) -> Result<Option<Cursor>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let parse = || {
        let bytes: [u8; 24] = hex::decode(text).ok()?.try_into().ok()?;
        let micros = i64::from_be_bytes(bytes[..8].try_into().ok()?);
        let time = DateTime::from_timestamp_micros(micros)?;
        // Times that the database could not even compare with.
        (2000..3000).contains(&time.year()).then_some((time, Uuid::from_slice(&bytes[8..]).ok()?))
    };
    let bad = || Problem::new(Code::BadCursor, "use the `next` of the page before, unchanged").at("cursor");
    parse().map(Some).ok_or_else(bad)
}

/// Makes a page of at most `limit` rows from one row more than that.
pub fn page<R, T>(
    mut rows: Vec<R>,
    limit: i64,
    key: impl Fn(&R) -> Cursor,
    view: impl Fn(R) -> Result<T, Problem>,
) -> Result<Page<T>, Problem> {
    let more = rows.len() as i64 > limit;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|row| {
        let (time, id) = key(row);
        hex::encode([&time.timestamp_micros().to_be_bytes()[..], id.as_bytes()].concat())
    });
    Ok(Page { items: rows.into_iter().map(view).collect::<Result<_, _>>()?, next })
}
