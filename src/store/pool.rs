//! Connections and migrations.

use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Opens a pool of at most `size` connections. Fails when the database cannot be reached within ten seconds.
pub async fn connect(url: &str, size: u32) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new().max_connections(size).acquire_timeout(Duration::from_secs(10)).connect(url).await
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
