//! torchattacks in a Python of its own, asked line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::dataset::Batch;
use crate::protocol::Device;

const SCRIPT: &str = include_str!("../../../../tools/bench/torchattacks.py");

/// The running script and the images that it attacks.
pub struct Rival {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    images: tempfile::NamedTempFile,
    labels: Vec<u32>,
    shape: [usize; 4],
    threads: i32,
    device: Device,
    pub versions: Value,
}

pub struct Question<'a> {
    pub model: &'a Path,
    pub attack: &'static str,
    pub norm: &'static str,
    pub epsilon: f64,
    pub steps: u32,
    /// Of Square.
    pub queries: u32,
    /// Leave TF32 on, as PyTorch does in convolutions.
    pub reduced: bool,
}

#[derive(Debug, Deserialize)]
pub struct Answer {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub standing: u32,
}

impl Rival {
    pub fn start(python: &Path, batch: &Batch, device: Device) -> anyhow::Result<Self> {
        let mut images = tempfile::NamedTempFile::new()?;
        images.write_all(&batch.pixels)?;
        let threads = tch::get_num_threads();
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} does not start", python.display()))?;
        let to = child.stdin.take().context("the script has an input")?;
        let from = BufReader::new(child.stdout.take().context("the script has an output")?);
        let shape = batch.shape;
        let shape = [batch.labels.len(), shape.channels as usize, shape.height as usize, shape.width as usize];
        let labels = batch.labels.clone();
        let mut rival = Self { child, to, from, images, labels, shape, threads, device, versions: Value::Null };
        rival.versions = rival.read()?;
        Ok(rival)
    }

    pub fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        let request = json!({
            "model": question.model, "images": self.images.path(), "shape": self.shape, "labels": self.labels, "threads": self.threads,
            "attack": question.attack, "norm": question.norm, "epsilon": question.epsilon, "steps": question.steps,
            "queries": question.queries, "device": self.device, "tf32": question.reduced,
        });
        writeln!(self.to, "{request}")?;
        self.to.flush()?;
        let answer: Answer = serde_json::from_value(self.read()?)?;
        eprintln!(
            "torchattacks, {} in {} at {}: {:.2} s",
            question.attack, question.norm, question.epsilon, answer.seconds
        );
        Ok(answer)
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "the rival ended; `--python` names a Python that has it, tools/bench/torchattacks.py says which packages it needs"
        );
        serde_json::from_str(&line).context("the rival printed something else")
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
