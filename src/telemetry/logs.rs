//! Logs on standard error, and traces to a collector where one is configured.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogFormat;

/// How long the end of the program waits for the last spans to be taken.
const FLUSH: Duration = Duration::from_secs(3);

/// Sends the last spans when it goes out of scope.
#[must_use = "spans are sent until it is dropped"]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(|provider| provider.shutdown_with_timeout(FLUSH)) {
            eprintln!("the last spans were not sent: {error}");
        }
    }
}

/// Starts logging, once per process. `GAUNTLET_LOG_LEVEL` takes the place of `filter`: a level such as `debug`, or
/// `gauntlet=debug,sqlx=info`. `collector` is the base URL of an OTLP/HTTP collector, `role` what this process is there.
pub fn init(filter: &str, format: LogFormat, collector: Option<&str>, role: &str) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_from_env("GAUNTLET_LOG_LEVEL").unwrap_or_else(|_| EnvFilter::new(filter));
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Human => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let provider = collector.map(|url| provider(url, role)).transpose()?;
    // Only spans of our own, whatever the log's level: those of libraries are their business.
    let ours = Targets::new().with_target("gauntlet", LevelFilter::INFO);
    let spans =
        provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer("gauntlet")).with_filter(ours));
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(Telemetry(provider))
}

fn provider(collector: &str, role: &str) -> anyhow::Result<SdkTracerProvider> {
    let url = format!("{}/v1/traces", collector.trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(&url).build();
    let exporter = exporter.with_context(|| format!("the setting `otlp_endpoint`: cannot send traces to {url}"))?;
    let resource = Resource::builder_empty()
        .with_service_name(format!("gauntlet-{role}"))
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}
