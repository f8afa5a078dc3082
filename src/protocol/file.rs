//! Protocol documents: TOML on disk, the same structure as JSON over HTTP.

use std::collections::HashSet;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::attack_block::AttackBlock;
use super::condition::{AttackCondition, Condition, ConditionKind, MinNormCondition};
use super::corruption::{CorruptionBlock, Scene};
use super::threat::ThreatModel;
use super::verdict::VerdictRule;

/// A named, versioned list of conditions and the rule that aggregates them into columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Lower-case letters, digits, `-`, `_` and `.`; at most 64.
    pub name: String,
    #[serde(default = "one")]
    pub version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default)]
    pub aggregate: Aggregate,
    /// How verdicts on stochastic models are drawn.
    #[serde(default)]
    pub verdict: VerdictRule,
    /// Images of each seed that get a second opinion, by which the grade is found: a probe of bounded cost, beside the attacks,
    /// at the largest budget of each ladder. At most 256; 0 switches it off, and the grade then is at best `not_assessed`.
    #[serde(default = "some_images", skip_serializing_if = "usual")]
    pub second_opinion: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<Clean>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attack: Vec<AttackBlock>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corruption: Vec<CorruptionBlock>,
}

/// Asks for the accuracy on unperturbed images. Has no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Clean {}

/// Which summary columns a table carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// Clean accuracy and the plain mean over attack cells.
    #[default]
    None,
    /// Also Perturbation and Overall mean (Dapello, Marques et al. 2020), where their parts were measured.
    Vonenet,
    /// Also the unnormalised error and, of the official saved set, mCE and relative mCE (Hendrycks & Dietterich 2019).
    ImagenetC,
    /// Also the unnormalised error, as CIFAR-10-C is reported.
    #[serde(rename = "cifar10-c")]
    Cifar10C,
}

fn one() -> u32 {
    1
}

/// Enough that a share of one in ten can be told from none.
const SECOND_OPINION: u32 = 32;
const MAX_SECOND_OPINION: u32 = 256;

fn some_images() -> u32 {
    SECOND_OPINION
}

/// Documents that leave the usual number unsaid keep their hash.
fn usual(images: &u32) -> bool {
    *images == SECOND_OPINION
}

/// What is wrong with a protocol, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ProtocolError {
    /// Path of the offending key, e.g. `attack[0].step_size`; empty when the document as a whole is at fault.
    pub key: String,
    pub problem: String,
}

impl ProtocolError {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

/// Most cells one protocol may resolve to.
pub const MAX_CONDITIONS: usize = 1000;

impl Protocol {
    /// Reads a TOML document, applies `name=value` settings, and validates.
    pub fn from_toml(text: &str, settings: &[(String, String)]) -> Result<Self, ProtocolError> {
        let table: toml::Table = toml::from_str(text).map_err(|e| ProtocolError::new("", e.to_string()))?;
        let value = serde_json::to_value(table).map_err(|e| ProtocolError::new("", e.to_string()))?;
        Self::from_value(value, settings)
    }

    /// The same for a document that is already data.
    pub fn from_value(value: Value, settings: &[(String, String)]) -> Result<Self, ProtocolError> {
        let settings: Vec<_> = settings.iter().map(|(name, text)| (name.clone(), setting_value(text))).collect();
        Self::from_json(value, &settings)
    }

    /// The same with settings that are already data.
    pub fn from_json(mut value: Value, settings: &[(String, Value)]) -> Result<Self, ProtocolError> {
        for (name, setting) in settings {
            apply_setting(&mut value, name, setting)?;
        }
        let mut protocol: Self = parse(value)?;
        protocol.validate()?;
        protocol.attack = protocol.attack.into_iter().map(AttackBlock::filled).collect();
        Ok(protocol)
    }

    /// SHA-256 of the resolved document, in hex: equal documents are one protocol.
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(serde_json::to_string(self).expect("a protocol is plain data")))
    }

    fn validate(&self) -> Result<(), ProtocolError> {
        check_name("name", &self.name)?;
        if let VerdictRule::Majority(n) = self.verdict
            && (n < 3 || n % 2 == 0)
        {
            return Err(ProtocolError::new("verdict.majority", format!("must be odd and at least 3, not {n}")));
        }
        if self.second_opinion > MAX_SECOND_OPINION {
            let problem = format!("must be at most {MAX_SECOND_OPINION}, not {}", self.second_opinion);
            return Err(ProtocolError::new("second_opinion", problem));
        }
        if self.clean.is_none() && self.attack.is_empty() && self.corruption.is_empty() {
            let problem = "the protocol has no condition: add [clean], [[attack]] or [[corruption]]";
            return Err(ProtocolError::new("", problem));
        }
        for (i, block) in self.corruption.iter().enumerate() {
            block.validate(&format!("corruption[{i}]"))?;
        }
        self.attack.iter().enumerate().try_for_each(|(i, block)| block.validate(&format!("attack[{i}]")))
    }

    /// The table's cells for the dataset behind this preset, as it is published; corruptions need a preset of known size.
    pub fn conditions(&self, preset: Option<&str>) -> Result<Vec<Condition>, ProtocolError> {
        let scene = preset.and_then(Scene::of_preset);
        self.resolved(preset, scene.as_ref())
    }

    /// The table's cells, in document order.
    pub fn conditions_for(&self, scene: &Scene) -> Result<Vec<Condition>, ProtocolError> {
        self.resolved(scene.preset, Some(scene))
    }

    fn resolved(&self, preset: Option<&str>, scene: Option<&Scene>) -> Result<Vec<Condition>, ProtocolError> {
        let mut conditions = Vec::new();
        if self.clean.is_some() {
            if scene.is_some_and(|scene| !scene.has_clean_images()) {
                let problem = "the dataset holds corrupted images alone: import it with --clean and the dataset of its clean \
                               images, or leave this row out with `--set clean=false`, over HTTP \"set\": {\"clean\": false}";
                return Err(ProtocolError::new("clean", problem));
            }
            conditions.push(Condition { id: "clean".into(), kind: ConditionKind::Clean });
        }
        for (i, block) in self.attack.iter().enumerate() {
            if scene.is_some_and(|scene| !scene.has_clean_images()) {
                let problem = "the dataset holds corrupted images alone, and attacks start from clean ones";
                return Err(ProtocolError::new(format!("attack[{i}]"), problem));
            }
            let budgets = block
                .epsilon
                .for_preset(preset)
                .map_err(|problem| ProtocolError::new(format!("attack[{i}].epsilon"), problem))?;
            conditions.extend(block.unbudgeted().into_iter().map(|(mark, attack)| Condition {
                id: format!("{}-{}{mark}", block.name(), block.norm),
                kind: ConditionKind::MinNorm(MinNormCondition { norm: block.norm, attack }),
            }));
            conditions.extend(budgets.iter().map(|budget| Condition {
                id: format!("{}-{}-{}", block.name(), block.norm, budget.text),
                kind: ConditionKind::Attack(AttackCondition {
                    threat: ThreatModel { norm: block.norm, epsilon: budget.epsilon },
                    independent: block.independent,
                    eight_bit: block.eight_bit,
                    search_precision: block.search_precision,
                    attack: block.resolve(),
                }),
            }));
        }
        for (i, block) in self.corruption.iter().enumerate() {
            let at = format!("corruption[{i}]");
            let scene = scene.ok_or_else(|| ProtocolError::new(&at, "the size of the images is not known"))?;
            conditions.extend(block.conditions(&at, scene)?);
        }
        if conditions.len() > MAX_CONDITIONS {
            let problem = format!("resolves to {} conditions; at most {MAX_CONDITIONS} are allowed", conditions.len());
            return Err(ProtocolError::new("", problem));
        }
        let mut seen = HashSet::new();
        match conditions.iter().find(|c| !seen.insert(c.id.clone())) {
            None => Ok(conditions),
            Some(twice) => Err(ProtocolError::new(
                if matches!(twice.kind, ConditionKind::Corruption(_)) { "corruption" } else { "attack" },
                match twice.kind {
                    ConditionKind::Corruption(_) => format!("condition {} occurs twice", twice.id),
                    _ => format!("condition {} occurs twice: give one of its blocks a `label`", twice.id),
                },
            )),
        }
    }
}

pub(super) fn check_name(key: &str, name: &str) -> Result<(), ProtocolError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ProtocolError::new(key, format!("{name:?} must be 1 to 64 of a-z, 0-9, '-', '_', '.'")))
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, ProtocolError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        ProtocolError::new(if path == "." { "" } else { &path }, e.inner().to_string())
    })
}

/// The value of a `--set name=text`: TOML if it reads as that, else a string.
fn setting_value(text: &str) -> Value {
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

const DOCUMENT_KEYS: [&str; 5] = ["name", "version", "aggregate", "verdict", "second_opinion"];

/// Applies one `--set`. `clean` is true or false; `steps` reaches every attack block, `attack.linf.steps` those of one norm or label,
/// `attack.0.steps` one block; `severity` and the other keys of corruptions reach every corruption block,
/// `corruption.0.severity` one; `verdict` and the other top-level keys the document.
fn apply_setting(document: &mut Value, name: &str, value: &Value) -> Result<(), ProtocolError> {
    let wrong = |problem: String| ProtocolError::new(format!("--set {name}"), problem);
    let object = document.as_object_mut().ok_or_else(|| wrong("the protocol is not a table".into()))?;
    if DOCUMENT_KEYS.contains(&name) {
        object.insert(name.to_owned(), value.clone());
        return Ok(());
    }
    if name == "clean" {
        match value.as_bool() {
            Some(true) => object.insert(name.to_owned(), Value::Object(serde_json::Map::new())),
            Some(false) => object.remove(name),
            None => return Err(wrong("must be true or false".into())),
        };
        return Ok(());
    }
    let (kind, selector, key) = match name.split_once('.') {
        Some((kind @ ("attack" | "corruption"), rest)) => {
            let form = format!("write {kind}.<{}index>.<key>", if kind == "attack" { "norm, label or " } else { "" });
            let (selector, key) = rest.split_once('.').ok_or_else(|| wrong(form))?;
            (kind, Some(selector), key)
        }
        _ if CorruptionBlock::KEYS.contains(&name) => ("corruption", None, name),
        _ => ("attack", None, name),
    };
    let blocks = object.get_mut(kind).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    let mut reached = false;
    for (i, block) in blocks.iter_mut().enumerate() {
        let is = |field: &str, s: &str| block.get(field).and_then(Value::as_str) == Some(s);
        let selected = selector.is_none_or(|s| s == i.to_string() || is("norm", s) || is("label", s));
        if let (true, Some(block)) = (selected, block.as_object_mut()) {
            block.insert(key.to_owned(), value.clone());
            reached = true;
        }
    }
    if reached { Ok(()) } else { Err(wrong(format!("no {kind} block of this protocol is meant by it"))) }
}

#[cfg(test)]
mod tests {
    use super::super::attack::{Attack, CarliniWagner, Keep};
    use super::super::builtin::{builtin, builtins};
    use super::super::corruption::{Corruption, Pictures, Published, Severity};
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn ids(protocol: &Protocol, preset: &str) -> Vec<String> {
        protocol.conditions(Some(preset)).unwrap().into_iter().map(|c| c.id).collect()
    }

    #[test]
    fn every_builtin_states_budgets_for_every_preset() {
        for protocol in builtins() {
            for preset in ["mnist", "cifar10", "cifar100", "imagenet"] {
                assert!(!protocol.conditions(Some(preset)).unwrap().is_empty());
            }
        }
        assert_eq!(ids(&builtin("pgd-linf").unwrap(), "imagenet"), ["clean", "pgd-linf-1/1020", "pgd-linf-1/255"]);
        assert_eq!(ids(&builtin("pgd-grid").unwrap(), "mnist").len(), 13);
    }

    #[test]
    fn a_document_survives_the_round_trip_through_json() {
        for protocol in builtins() {
            let json = serde_json::to_value(&protocol).unwrap();
            assert_eq!(Protocol::from_value(json, &[]).unwrap(), protocol);
        }
    }

    #[test]
    fn errors_name_the_offending_key() {
        let attack =
            |line: &str| format!("name = \"x\"\n[[attack]]\nattack = \"pgd\"\nnorm = \"l2\"\nepsilon = 1\n{line}");
        for (line, key) in [
            ("stepss = 3", "attack[0].stepss"),
            ("steps = 0", "attack[0].steps"),
            ("steps = \"many\"", "attack[0].steps"),
            ("step_size = { of_epsilon = -1 }", "attack[0].step_size"),
            ("restarts = 3", "attack[0].restarts"),
            ("loss = \"logit\"", "attack[0].loss"),
            ("targets = 3", "attack[0].targets"),
            ("label = \"No Spaces\"", "attack[0].label"),
        ] {
            let error = Protocol::from_toml(&attack(line), &[]).unwrap_err();
            assert_eq!(error.key, key, "{error}");
        }
        let budget = attack("").replace("epsilon = 1", "epsilon = [0.1, \"8/0\"]");
        assert_eq!(Protocol::from_toml(&budget, &[]).unwrap_err().key, "attack[0].epsilon");
        assert_eq!(Protocol::from_toml("name = \"x\"\ncleen = {}", &[]).unwrap_err().key, "cleen");
    }

    #[test]
    fn settings_reach_what_they_name() {
        let grid = serde_json::to_value(builtin("pgd-grid").unwrap()).unwrap();
        let set = |pairs: &[(&str, &str)]| Protocol::from_value(grid.clone(), &settings(pairs));
        let p = set(&[("steps", "10"), ("attack.l2.epsilon", "[\"1/2\", 0.25]"), ("attack.0.keep", "last")]).unwrap();
        assert!(p.attack.iter().all(|a| a.steps == Some(10)));
        assert_eq!([p.attack[0].keep, p.attack[1].keep], [Some(Keep::Last), Some(Keep::Best)]);
        let found = ids(&p, "mnist");
        assert!(found.contains(&"pgd-l2-1/2".into()) && found.contains(&"pgd-linf-0.3".into()), "{found:?}");
        assert_eq!(set(&[("attack.l7.steps", "1")]).unwrap_err().key, "--set attack.l7.steps");
        assert_eq!(set(&[("step", "1")]).unwrap_err().key, "attack[0].step");
        assert_eq!(set(&[("second_opinion", "0")]).unwrap().second_opinion, 0);
        assert_eq!(set(&[("second_opinion", "257")]).unwrap_err().key, "second_opinion");
        assert_eq!(set(&[("second_opinion", "32")]).unwrap().hash(), builtin("pgd-grid").unwrap().hash());
    }

    #[test]
    fn corruption_blocks_resolve_their_tables_and_name_what_is_wrong() {
        let c = builtin("imagenet-c").unwrap();
        let scene = |images| Scene::new(None, images, Pictures::Procedural);
        let json = |p: &Protocol, images| serde_json::to_value(&p.conditions_for(&scene(images)).unwrap()[43]).unwrap();
        assert_eq!(c.conditions_for(&scene([3, 224, 224])).unwrap().len(), 76);
        let frost = serde_json::json!({"id": "frost-3", "kind": "corruption", "type": "frost", "severity": 3, "table": "299",
            "mode": "in-memory", "pictures": "procedural", "labels": ["other-dataset", "frost-proc"]});
        assert_eq!(json(&c, [3, 299, 299]), frost);
        let grey = json(&c, [1, 32, 32]);
        assert_eq!(
            (&grey["table"], &grey["labels"]),
            (&"32".into(), &serde_json::json!(["unofficial-size", "frost-proc"]))
        );
        let unsaid = c.conditions_for(&scene([3, 96, 96])).unwrap_err();
        assert_eq!(unsaid.key, "corruption[0].table", "{unsaid}");

        let document = serde_json::to_value(&c).unwrap();
        let set = |pairs: &[(&str, &str)]| Protocol::from_value(document.clone(), &settings(pairs));
        let few =
            set(&[("severity", "[1, 3]"), ("corruption.0.type", "[\"fog\"]"), ("table", "64"), ("mode", "saved")]);
        let few: Vec<String> =
            few.unwrap().conditions_for(&scene([3, 96, 96])).unwrap().into_iter().map(|c| c.id).collect();
        assert_eq!(few, ["clean", "fog-1-saved", "fog-3-saved"]);
        for (name, value, key) in [
            ("severity", "6", "corruption[0].severity"),
            ("severity", "[2, 2]", "corruption[0].severity"),
            ("type", "rain", "corruption[0].type"),
            ("table", "128", "corruption[0].table"),
            ("mode", "loud", "corruption[0].mode"),
            ("corruption.1.mode", "saved", "--set corruption.1.mode"),
            ("steps", "3", "--set steps"),
        ] {
            let error = set(&[(name, value)]).unwrap_err();
            assert_eq!(error.key, key, "{error}");
        }
        let mut twice = c.clone();
        twice.corruption.push(c.corruption[0].clone());
        assert_eq!(twice.conditions(Some("imagenet")).unwrap_err().key, "corruption");
    }

    #[test]
    fn on_a_published_set_corruptions_are_read_and_what_it_lacks_is_named() {
        let cells: Vec<_> =
            Corruption::ALL[..15].iter().flat_map(|&c| Severity::ALL.map(move |severity| (c, severity))).collect();
        let scene = |clean, cells| {
            let scene = Scene::new(Some("imagenet"), [3, 224, 224], Pictures::Procedural);
            Scene { published: Some(Published { clean, cells }), ..scene }
        };
        for name in ["imagenet-c", "vonenet-corruption"] {
            let conditions = builtin(name).unwrap().conditions_for(&scene(true, cells.clone())).unwrap();
            assert_eq!((conditions.len(), conditions[43].id.as_str()), (76, "frost-3-published"));
            let frost = serde_json::json!({"id": "frost-3-published", "kind": "corruption", "type": "frost", "severity": 3,
                "table": "224", "mode": "published"});
            assert_eq!(serde_json::to_value(&conditions[43]).unwrap(), frost);
        }
        let document = serde_json::to_value(builtin("imagenet-c").unwrap()).unwrap();
        let resolve = |pairs: &[(&str, &str)], scene: &Scene| {
            Protocol::from_value(document.clone(), &settings(pairs))?.conditions_for(scene)
        };
        let bare = scene(false, cells.clone());
        assert_eq!(resolve(&[], &bare).unwrap_err().key, "clean");
        assert_eq!(resolve(&[("clean", "false")], &bare).unwrap().len(), 75);
        assert_eq!(resolve(&[("clean", "no")], &bare).unwrap_err().key, "--set clean");
        assert_eq!(resolve(&[("clean", "false"), ("mode", "in-memory")], &bare).unwrap_err().key, "corruption[0].mode");
        assert_eq!(resolve(&[("mode", "in-memory")], &scene(true, cells.clone())).unwrap()[43].id, "frost-3");
        assert_eq!(
            builtin("pgd-linf").unwrap().conditions_for(&scene(false, cells[..1].to_vec())).unwrap_err().key,
            "clean"
        );
        let part = resolve(&[], &scene(true, cells[..70].to_vec())).unwrap_err();
        assert_eq!(part.key, "corruption[0].type");
        assert!(part.problem.contains("of 5 cells (jpeg_compression-1"), "{part}");
        let images = Scene::new(Some("imagenet"), [3, 224, 224], Pictures::Procedural);
        assert_eq!(resolve(&[("mode", "published")], &images).unwrap_err().key, "corruption[0].mode");
        assert_eq!(builtin("vonenet-corruption").unwrap().conditions_for(&images).unwrap()[43].id, "frost-3-saved");
    }

    #[test]
    fn a_block_without_a_budget_makes_one_condition_or_one_per_number_of_queries() {
        let found = ids(&builtin("min-norm").unwrap(), "imagenet");
        assert_eq!(found, ["clean", "min-norm-linf", "min-norm-l2", "min-norm-l1"]);
        let found = ids(&builtin("decision-curve").unwrap(), "mnist");
        assert_eq!(
            (found.len(), found[1].as_str(), found[10].as_str()),
            (11, "hop-skip-jump-linf-q100", "hop-skip-jump-l2-q10000")
        );
        let block = |lines: &str| format!("name = \"x\"\n[[attack]]\nnorm = \"l1\"\nepsilon = \"minimal\"\n{lines}");
        for (lines, key) in [
            ("attack = \"pgd\"", "attack[0].attack"),
            ("attack = \"ddn\"", "attack[0].attack"),
            ("attack = \"cw\"", "attack[0].attack"),
            ("attack = \"boundary\"", "attack[0].attack"),
            ("attack = \"hop-skip-jump\"", "attack[0].attack"),
            ("cascade = [\"fmn\", \"square\"]", "attack[0].cascade[1]"),
            ("attack = \"fmn\"\nindependent = true", "attack[0].independent"),
            ("attack = \"fmn\"\nqueries = 5", "attack[0].queries"),
        ] {
            let error = Protocol::from_toml(&block(lines), &[]).unwrap_err();
            assert_eq!(error.key, key, "{error}");
        }
        let in_l2 = |attack: &str, set: (&str, &str)| {
            let text = block(&format!("attack = \"{attack}\"")).replace("l1", "l2");
            Protocol::from_toml(&text, &settings(&[set]))
        };
        for attack in ["hop-skip-jump", "boundary"] {
            assert_eq!(ids(&in_l2(attack, ("queries", "7")).unwrap(), "mnist"), [format!("{attack}-l2")]);
            for queries in ["[]", "[3, 3]", "[0, 5]"] {
                assert_eq!(in_l2(attack, ("queries", queries)).unwrap_err().key, "attack[0].queries", "{queries}");
            }
        }
        assert_eq!(in_l2("cw", ("searches", "101")).unwrap_err().key, "attack[0].searches");
        assert_eq!(in_l2("ddn", ("searches", "5")).unwrap_err().key, "attack[0].searches");
        let descents = in_l2("cw", ("searches", "4")).unwrap().conditions(None).unwrap();
        let ConditionKind::MinNorm(descents) = &descents[0].kind else { panic!("{descents:?}") };
        let cw = CarliniWagner { steps: 100, searches: 4, restarts: 1, eot: 1 };
        assert_eq!(descents.attack, Attack::Cw(cw));
        let budgeted = settings(&[("epsilon", "0.1"), ("queries", "[5, 6]")]);
        let square = "name = \"x\"\n[[attack]]\nnorm = \"l2\"\nepsilon = 1\nattack = \"square\"";
        assert_eq!(Protocol::from_toml(square, &budgeted).unwrap_err().key, "attack[0].queries");
    }

    #[test]
    fn blocks_that_collide_ask_for_a_label() {
        let mut p = builtin("pgd-linf").unwrap();
        p.attack.push(AttackBlock { steps: Some(7), ..p.attack[0].clone() });
        assert!(p.conditions(Some("mnist")).unwrap_err().problem.contains("label"));
        p.attack[1].label = Some("pgd-7".into());
        assert_eq!(p.conditions(Some("mnist")).unwrap().len(), 9);
    }
}
