//! Waiting for a database or an artifact store that is away while there are results to keep.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::warn;

/// How long results are held on to. Working them out again would take about a minute, but of every worker.
const PATIENCE: Duration = Duration::from_secs(600);
/// Wait before the first repetition; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Shorter than the time that the queue leaves holders of leases to be heard after the database is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Does `attempt` until it succeeds, fails in a way that waiting does not `mend`, or has failed for ten minutes.
pub async fn patiently<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mends: impl Fn(&E) -> bool,
    attempt: impl Fn() -> F,
) -> Result<T, E> {
    let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        match attempt().await {
            Err(error) if mends(&error) && start.elapsed() < PATIENCE => {
                warn!(%error, what, "failed; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    async fn tries_until_given_up(failures: u32, mends: bool) -> (Result<u32, &'static str>, u32) {
        let tries = Cell::new(0);
        let attempt = || {
            tries.set(tries.get() + 1);
            std::future::ready(if tries.get() > failures { Ok(tries.get()) } else { Err("away") })
        };
        (patiently("test", |_| mends, attempt).await, tries.get())
    }

    #[tokio::test]
    async fn what_comes_back_is_waited_for_and_nothing_else() {
        assert_eq!(tries_until_given_up(3, true).await, (Ok(4), 4));
        assert_eq!(tries_until_given_up(3, false).await, (Err("away"), 1));
    }
}
