//! `gauntlet demo`: the whole path on real images, in a minute.

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use comfy_table::CellAlignment;

use super::client::Client;
use super::context;
use super::follow::follow;
use super::show;
use super::up::Running;
use crate::config::Settings;
use crate::dataset::{Catalogue, Geometry, ImportOptions, Resize, Source, SourceOptions};
use crate::http::evaluations::{EvaluationRequest, ProtocolChoice};
use crate::protocol::report::{Row, Table};
use crate::protocol::{Format, ModelSpec, Needs};
use crate::store::evaluations::{State, WitnessPolicy};

const DIGITS: &[u8] = include_bytes!("../../data/digits/digits.npz");
const MODELS: [(&str, &[u8]); 2] = [
    ("digits-standard", include_bytes!("../../models/digits/standard.pt")),
    ("digits-robust", include_bytes!("../../models/digits/robust.pt")),
];
/// The models were trained on the images before this one.
const FIRST_TEST_IMAGE: u32 = 1297;

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Stop the server when the table is printed.
    #[arg(long)]
    exit: bool,
}

pub async fn run(arguments: DemoArguments, settings: &Settings) -> anyhow::Result<()> {
    let _telemetry = context::quiet_telemetry(settings)?;
    step("Starting the server: embedded database, API, one worker");
    let server = Running::start(settings, settings.workers.max(1)).await?;
    let address = format!("http://{}", server.address);
    let outcome = show_off(&Client::new(&address, None)?, settings).await;
    if arguments.exit || outcome.is_err() {
        server.stop().await?;
        return outcome;
    }
    let gauntlet = std::env::args().next().unwrap_or_else(|| "gauntlet".into());
    println!("The server keeps running at {address} until you press Ctrl-C. Try next, in another terminal:");
    println!("  {gauntlet} status");
    println!("      the evaluations so far");
    println!(
        "  {gauntlet} submit models/digits/robust.pt --dataset digits --offset 1297 --protocol pgd-l1 --set 'epsilon=[5, 10]' --watch"
    );
    println!("      robust in one norm is not robust in another");
    println!("  {gauntlet} submit MODEL.pt --dataset digits --protocol pgd-linf --set 'epsilon=[0.1, 0.2]' --watch");
    println!("      a TorchScript model of your own: 1×32×32 grey pixels in [0,1], 10 classes");
    println!("  {address}/docs");
    println!("      the API\n");
    server.until_told_to_stop().await
}

async fn show_off(client: &Client, settings: &Settings) -> anyhow::Result<()> {
    step("Importing the UCI handwritten digits (1,797 real images) at 32×32");
    import_digits(settings).await?;
    let spec = ModelSpec {
        format: Format::Torchscript,
        input: [1, 32, 32],
        classes: 10,
        preprocessing: None,
        stochastic: false,
    };
    let folder = tempfile::tempdir()?;
    let mut submitted = Vec::new();
    for (name, bytes) in MODELS {
        step(&format!("Submitting {name} over HTTP"));
        let file = folder.path().join(name);
        std::fs::write(&file, bytes)?;
        let model = client.checked(client.upload(&file, name, &spec).await?.id).await?;
        let set = [("steps", serde_json::json!(20)), ("epsilon", serde_json::json!([0.05, 0.1, 0.15, 0.2]))];
        let request = EvaluationRequest {
            model: model.id,
            dataset: "digits".into(),
            protocol: ProtocolChoice::Named("pgd-linf".into()),
            set: set.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            offset: FIRST_TEST_IMAGE,
            images: None,
            seeds: vec![0],
            witnesses: WitnessPolicy::default(),
            priority: 0,
            needs: Needs::default(),
        };
        submitted.push((name, client.submit(&request).await?.summary.id));
    }
    let mut tables = Vec::new();
    for (name, id) in submitted {
        let end = follow(client, id, name).await?;
        anyhow::ensure!(end.summary.state == State::Succeeded, "{name}: {}", super::follow::status_line(&end));
        tables.push((name, client.table(id).await?));
    }
    println!("\n{}\n", side_by_side(&tables));
    println!(
        "Accuracy on the 500 digits that neither model was trained on, with 95 % intervals. Both models read clean digits"
    );
    println!("well; PGD takes the first one apart, while the second, trained on PGD examples, holds.\n");
    Ok(())
}

fn step(text: &str) {
    println!("• {text}");
    std::io::stdout().flush().ok();
}

async fn import_digits(settings: &Settings) -> anyhow::Result<()> {
    let mut file = tempfile::Builder::new().prefix("digits").suffix(".npz").tempfile()?;
    file.write_all(DIGITS)?;
    let geometry = Geometry { resize: Some(Resize::Square(32)), crop: None };
    let source = Source::open(file.path(), &SourceOptions { geometry, ..SourceOptions::default() })?;
    let options = ImportOptions { preset: None, replace: true, progress: Arc::new(|_| {}) };
    Catalogue::new(context::artifacts(settings)?.store()).import("digits", Arc::new(source), &options).await?;
    Ok(())
}

/// One row per condition, one column per model.
fn side_by_side(tables: &[(&str, Table)]) -> comfy_table::Table {
    let mut grid = show::grid(["condition", tables[0].0, tables[1].0]);
    let cell = |row: &Row| match (row.accuracy, row.ci95) {
        (Some(a), Some([low, high])) => format!("{}  ({:.1} – {:.1})", show::percent(a), low * 100.0, high * 100.0),
        _ => "–".into(),
    };
    for (left, right) in tables[0].1.conditions.iter().zip(&tables[1].1.conditions) {
        grid.add_row([left.condition.id.clone(), cell(left), cell(right)]);
    }
    for column in [1, 2] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    grid
}
