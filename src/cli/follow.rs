//! Watching an evaluation with a progress bar.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::client::Client;
use crate::http::evaluation::EvaluationView;

/// Follows an evaluation to its end; shows progress on a terminal's standard error, and changes of state elsewhere.
pub async fn follow(client: &Client, id: Uuid, name: &str) -> anyhow::Result<EvaluationView> {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(1) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{prefix:20} {wide_bar} {human_pos}/{human_len} {msg}")?);
    bar.set_prefix(name.to_owned());
    let mut last = String::new();
    let end = client
        .follow(id, |view| {
            bar.set_length(view.progress.total.max(1));
            bar.set_position(view.progress.done);
            let message = status_line(view);
            if !terminal && message != last {
                eprintln!("{name}: {}/{} verdicts, {message}", view.progress.done, view.progress.total);
            }
            bar.set_message(message.clone());
            last = message;
        })
        .await?;
    bar.finish_and_clear();
    Ok(end)
}

/// State, and what a reader would ask next: why it waits, or how long it will take.
pub fn status_line(view: &EvaluationView) -> String {
    let state = view.summary.state.name();
    match (&view.waiting, view.eta_seconds, &view.summary.outcome) {
        (_, _, Some(outcome)) => format!("{state}: {}", outcome.detail),
        (Some(waiting), _, _) => format!("{state}: {}", waiting.sentence),
        (None, Some(eta), _) => format!("{state}, about {} left", duration(eta)),
        (None, None, None) => state.to_owned(),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
