//! Connections and migrations.

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgPool, PgPoolOptions};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// A connection that came back so recently need not be asked whether it lives: it was when it came back.
const FRESH: Duration = Duration::from_secs(1);

/// Opens a pool of at most `size` connections. Fails when the database cannot be reached within ten seconds.
pub async fn connect(url: &str, size: u32) -> Result<PgPool, sqlx::Error> {
    let options = PgPoolOptions::new().max_connections(size).acquire_timeout(Duration::from_secs(10));
    let test = options.test_before_acquire(false).before_acquire(|connection, known| {
        Box::pin(async move {
            if known.idle_for > FRESH {
                connection.ping().await?;
            }
            Ok(true)
        })
    });
    test.connect(url).await
}

/// Whether the database or the way to it failed, rather than a statement: the same may work later.
pub fn is_outage(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::PoolTimedOut | E::PoolClosed | E::Io(_) | E::Tls(_) | E::Protocol(_) | E::WorkerCrashed => true,
        // Connection lost; no disk, memory or connections left; shutting down or starting up; a disk that fails; deadlocks.
        E::Database(e) => {
            e.code().is_some_and(|code| ["08", "53", "57P", "58", "40"].iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

/// Brings the schema forward; safe to call from several processes at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    MIGRATIONS.run(pool).await
}

/// Whether every migration of this binary has been applied.
pub async fn is_migrated(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let newest = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    let applied: Option<bool> = sqlx::query_scalar("select success from _sqlx_migrations where version = $1")
        .bind(newest)
        .fetch_optional(pool)
        .await?;
    Ok(applied == Some(true))
}
