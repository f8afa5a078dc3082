//! Rate limits: one bucket of tokens per owner, in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Most owners remembered; full buckets are forgotten first, which changes nothing.
const CAPACITY: usize = 10_000;

/// Grants `per_minute` requests a minute to every owner, as many at once.
#[derive(Clone)]
pub struct Rates {
    per_minute: u32,
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Rates {
    /// 0: no limit.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, buckets: Arc::default() }
    }

    /// Takes a token, or says in how many seconds there will be one.
    pub fn take(&self, owner: &str) -> Result<(), u64> {
        self.take_at(owner, Instant::now())
    }

    fn take_at(&self, owner: &str, now: Instant) -> Result<(), u64> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let (most, per_second) = (f64::from(self.per_minute), f64::from(self.per_minute) / 60.0);
        let level =
            |bucket: &Bucket| (bucket.tokens + now.duration_since(bucket.filled).as_secs_f64() * per_second).min(most);
        let mut buckets = self.buckets.lock().expect("no holder panics");
        if buckets.len() >= CAPACITY {
            buckets.retain(|_, bucket| level(bucket) < most);
        }
        let bucket = buckets.entry(owner.to_owned()).or_insert(Bucket { tokens: most, filled: now });
        *bucket = Bucket { tokens: level(bucket), filled: now };
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - bucket.tokens) / per_second).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_wait_that_is_named_is_enough_and_owners_do_not_share() {
        let (rates, start) = (Rates::new(6), Instant::now());
        assert!((0..6).all(|_| rates.take_at("a", start).is_ok()));
        let wait = rates.take_at("a", start).unwrap_err();
        assert_eq!(wait, 10);
        assert!(rates.take_at("b", start).is_ok());
        assert!(rates.take_at("a", start + Duration::from_secs(wait - 1)).is_err());
        assert!(rates.take_at("a", start + Duration::from_secs(wait)).is_ok());
        assert!(rates.take_at("a", start + Duration::from_secs(wait)).is_err());
        assert!((0..1000).all(|_| Rates::new(0).take_at("a", start).is_ok()));
    }
}
