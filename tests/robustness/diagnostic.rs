//! The lie detector on models that look robust and are not, and on honest ones.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gauntlet::dataset::{Geometry, Resize, Source, SourceOptions};
use gauntlet::protocol::report::Tally;
use gauntlet::protocol::*;
use gauntlet::robustness::diagnostic::{second_opinion, signs};
use gauntlet::robustness::engine::{Images, Outcome, Run, evaluate};
use gauntlet::robustness::model::{Classifier, MemoryFormat, TorchScript, probe};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;

use crate::support::*;

const FIRST_TEST_IMAGE: usize = 1297;
const IMAGES: usize = 40;
const SEED: i64 = 3;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// tests/data/models.toml
#[derive(Deserialize)]
struct Models {
    misleading: Vec<Recipe>,
    honest: Vec<Recipe>,
}

#[derive(Deserialize)]
struct Recipe {
    name: String,
    base: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    activation: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    expect: String,
}

impl Recipe {
    fn epsilon(&self) -> f64 {
        if self.base == "robust" { 0.2 } else { 0.1 }
    }

    fn load(&self) -> TorchScript {
        let lines = |text: &str, default: &str| -> String {
            let text = if text.is_empty() { default } else { text };
            text.trim().lines().map(|line| format!("    {line}\n")).collect()
        };
        let layer = |name: &str, input: &str, at: u32| {
            let (weight, bias) = (format!("CONSTANTS.c{at}"), format!("CONSTANTS.c{}", at + 1));
            let shape = "[2, 2], [1, 1], [1, 1], False, [0, 0], 1, False, True, True, False";
            format!("    {name} = torch._convolution({input}, {weight}, {bias}, {shape})\n")
        };
        let code = format!(
            "class Digits(Module):\n  __parameters__ = []\n  __buffers__ = []\n  \
             def unit(self: __torch__.Digits, h: Tensor) -> Tensor:\n{}    return a\n  \
             def forward(self: __torch__.Digits, x0: Tensor) -> Tensor:\n{}{}{}{}    \
             z = torch.linear(torch.flatten((self).unit(h3, ), 1), CONSTANTS.c6, CONSTANTS.c7)\n{}    return y\n",
            lines(&self.activation, "a = torch.relu(h)"),
            lines(&self.before, "x = x0"),
            layer("h1", "x", 0),
            layer("h2", "(self).unit(h1, )", 2),
            layer("h3", "(self).unit(h2, )", 4),
            lines(&self.after, "y = z"),
        );
        let base = std::fs::File::open(repository(&format!("models/digits/{}.pt", self.base))).unwrap();
        let mut base = zip::ZipArchive::new(base).unwrap();
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for at in 0..base.len() {
            let mut entry = base.by_index(at).unwrap();
            let (name, mut bytes) = (entry.name().to_owned(), Vec::new());
            entry.read_to_end(&mut bytes).unwrap();
            if !name.ends_with(".debug_pkl") {
                archive.start_file(&name, stored).unwrap();
                archive.write_all(if name.ends_with("__torch__.py") { code.as_bytes() } else { &bytes }).unwrap();
            }
        }
        let bytes = archive.finish().unwrap().into_inner();
        let format = MemoryFormat::ChannelsFirst;
        TorchScript::load_bytes(&bytes, spec([1, 32, 32], 10), Device::Cpu, format)
            .unwrap_or_else(|error| panic!("{}: {error}\n{code}", self.name))
    }
}

fn models() -> Models {
    toml::from_str(&std::fs::read_to_string(repository("tests/data/models.toml")).unwrap()).unwrap()
}

fn digits() -> Images {
    let geometry = Geometry { resize: Some(Resize::Square(32)), crop: None };
    let options = SourceOptions { geometry, ..SourceOptions::default() };
    let source = Source::open(&repository("data/digits/digits.npz"), &options).unwrap();
    let range = FIRST_TEST_IMAGE..FIRST_TEST_IMAGE + IMAGES;
    let indices = range.clone().map(|image| image as u32).collect();
    let batch = source.read(range, &(Arc::new(|_| {}) as _)).unwrap();
    Images { indices, pixels: batch.pixels, labels: batch.labels }
}

fn part(images: &Images, range: std::ops::Range<usize>) -> Images {
    Images {
        indices: images.indices[range.clone()].to_vec(),
        labels: images.labels[range.clone()].to_vec(),
        pixels: images.pixels[range.start * 1024..range.end * 1024].to_vec(),
    }
}

/// One shard: verdicts and signs, with `sample` for the second opinion.
fn shard(
    model: &dyn Classifier,
    images: &Images,
    conditions: &[Condition],
    sample: &[u32],
) -> (Vec<Outcome>, Vec<Signs>) {
    let conditions: Vec<&Condition> = conditions.iter().collect();
    let rule = VerdictRule::OneForward;
    let run =
        Run { model, images, conditions: &conditions, seed: SEED as u64, rule, batch: 32, wants_witness: &|_| false };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let outcomes = evaluate(&run, &mut { go_on }).unwrap();
    let mut found = signs(&conditions, &outcomes, false);
    let opinion = second_opinion(&run, sample, &outcomes, &mut { go_on }).unwrap();
    found.last_mut().unwrap().add(&opinion);
    (outcomes, found)
}

fn attack_on(recipe: &Recipe) -> Vec<Condition> {
    ladder(Norm::Linf, &[recipe.epsilon()], false, &pgd())
}

fn judged(recipe: &Recipe) -> Diagnostics {
    let (model, images, conditions) = (recipe.load(), digits(), attack_on(recipe));
    let first = FIRST_TEST_IMAGE as u32;
    let sample = sample(SEED, first..first + IMAGES as u32, 24);
    let (outcomes, signs) = shard(&model, &images, &conditions, &sample);
    let pixels = Tensor::from_data_size(&images.pixels[..16 * 1024], &[16, 1, 32, 32], Kind::Uint8);
    let verdicts: Vec<Verdict> = outcomes.into_iter().map(|outcome| outcome.verdict).collect();
    let observed = Observed {
        conditions: &conditions,
        tallies: &[Tally::of(&conditions[0], &verdicts)],
        signs: &signs,
        seeds: 1,
        stochastic: false,
        complete: true,
    };
    diagnose(&probe(&model, &pixels).unwrap(), &observed)
}

#[test]
fn models_that_only_look_robust_are_exposed_by_what_is_wrong_with_them() {
    let models = models().misleading;
    for (name, grade) in [
        ("gradient's sign flipped", Grade::Unreliable),
        ("quantised input, 16 levels", Grade::Unreliable),
        ("noise, undeclared", Grade::Unreliable),
        ("k winners take all", Grade::Suspicious),
        ("saturated, dead units", Grade::Unreliable),
    ] {
        let recipe = models.iter().find(|recipe| recipe.name == name).unwrap();
        let diagnostics = judged(recipe);
        let codes: Vec<&str> = diagnostics.findings.iter().map(|finding| finding.code.as_str()).collect();
        assert!(codes.contains(&recipe.expect.as_str()), "{name}: {codes:?}");
        assert_eq!(diagnostics.grade, grade, "{name}: {codes:?}");
    }
}

#[test]
fn float64_tells_what_float32_rounds_away() {
    let Models { misleading, honest } = models();
    let looked = |recipe: &Recipe| {
        let (_, signs) = shard(&recipe.load(), &digits(), &attack_on(recipe), &(1297..1317).collect::<Vec<_>>());
        signs[0].seen[&Sign::PrecisionMatters].clone()
    };
    let rounded = misleading.iter().find(|recipe| recipe.name == "logits rounded by float32").unwrap();
    let seen = looked(rounded);
    assert!(seen.count >= 4, "{seen:?}");
    for recipe in honest.iter().take(2) {
        let seen = looked(recipe);
        assert!(seen.of >= 10 && seen.count == 0, "{}: {seen:?}", recipe.name);
    }
}

#[test]
fn honest_models_are_trustworthy() {
    let models = models().honest;
    for name in ["standard", "adversarially trained"] {
        let recipe = models.iter().find(|recipe| recipe.name == name).unwrap();
        let diagnostics = judged(recipe);
        assert_eq!(diagnostics.grade, Grade::Trustworthy, "{name}: {:?}", diagnostics.findings);
        assert!(diagnostics.second_opinion.images >= 20 && diagnostics.second_opinion.backwards > 0);
    }
}

#[test]
fn a_second_opinion_is_the_same_whatever_the_cut_and_leaves_verdicts_alone() {
    let recipe = models().honest.into_iter().find(|recipe| recipe.name == "adversarially trained").unwrap();
    let (model, images) = (recipe.load(), digits());
    let conditions = ladder(Norm::Linf, &[0.1, 0.2], false, &pgd());
    let sample: Vec<u32> = sample(SEED, 1297..1297 + IMAGES as u32, 12);
    let (outcomes, whole) = shard(&model, &images, &conditions, &sample);
    assert!(
        whole[1].of(Sign::Overturned) > 0 && whole[0].of(Sign::Overturned) == 0,
        "the largest budget alone is probed"
    );
    let mut sum = vec![Signs::default(); 2];
    let mut verdicts = Vec::new();
    for range in [29..IMAGES, 0..7, 7..29] {
        let images = part(&images, range);
        let here: Vec<u32> = sample.iter().copied().filter(|image| images.indices.contains(image)).collect();
        let (outcomes, signs) = shard(&model, &images, &conditions, &here);
        sum.iter_mut().zip(&signs).for_each(|(sum, signs)| sum.add(signs));
        verdicts.extend(outcomes);
    }
    assert_eq!(sum, whole);
    verdicts.sort_by_key(|outcome| (outcome.condition, outcome.verdict.image));
    assert_eq!(verdicts, outcomes);
    assert_eq!(shard(&model, &images, &conditions, &[]).0, outcomes);
}
