//! Where settings come from, and reading them from there.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use figment::providers::{Env, Format as _, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Source};

use super::Settings;

/// Variables with our prefix that are no settings.
const NO_SETTINGS: [&str; 4] = ["KEY", "LOG_LEVEL", "SERVER", "TEST_DATABASE_URL"];
const FILE: &str = "gauntlet.toml";

/// Defaults, a file and the environment, one over the other.
pub struct Sources(Figment);

/// A value that is no setting, or that none can have.
pub(super) struct Misfit {
    pub setting: String,
    pub problem: String,
}

impl Sources {
    /// `file` must exist when named; `gauntlet.toml` in the working directory is optional.
    pub fn new(file: Option<&Path>) -> anyhow::Result<Self> {
        let defaults = Figment::from(Serialized::defaults(Settings::default()));
        let with_file = match file {
            Some(path) => {
                anyhow::ensure!(path.is_file(), "configuration file {} does not exist", path.display());
                defaults.merge(Toml::file_exact(path))
            }
            None => defaults.merge(Toml::file(FILE)),
        };
        let database = Env::raw().only(&["DATABASE_URL"]);
        Ok(Self(with_file.merge(database).merge(Env::prefixed("GAUNTLET_").split("__").ignore(&NO_SETTINGS))))
    }

    /// The settings, secrets read from their files. An error names setting and source.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings: Settings = self.0.extract().context("the configuration is not valid")?;
        if let Some(file) = &settings.database_url_file {
            if settings.database_url.is_some() {
                bail!("both database_url ({}) and database_url_file are set: keep one", self.origin("database_url"));
            }
            let text =
                std::fs::read_to_string(file).with_context(|| format!("database_url_file {}", file.display()))?;
            settings.database_url = Some(text.trim().to_owned());
        }
        Ok(settings)
    }

    /// Where a setting's value comes from, in words; `default` if nobody set it.
    pub fn origin(&self, setting: &str) -> String {
        let Some(metadata) = self.0.find_metadata(setting) else { return "default".into() };
        match &metadata.source {
            Some(Source::File(path)) => path
                .strip_prefix(std::env::current_dir().unwrap_or_default())
                .map_or_else(|_| path.display().to_string(), |relative| relative.display().to_string()),
            _ if metadata.name.contains("GAUNTLET_") => {
                format!("GAUNTLET_{}", setting.replace('.', "__").to_uppercase())
            }
            _ if metadata.name.contains("environment") => setting.to_uppercase(),
            _ => "default".into(),
        }
    }

    /// Every value that does not fit, one by one, so that all of them are found and not the first only.
    pub(super) fn misfits(&self) -> anyhow::Result<Vec<Misfit>> {
        let given: Dict = self.0.extract().context("the configuration cannot be read")?;
        let known = known();
        let mut misfits = Vec::new();
        for (name, value) in leaves(&given) {
            if !known.contains(&name) {
                let near = known.iter().max_by(|a, b| alike(a, &name).total_cmp(&alike(b, &name)));
                let near = near.filter(|near| alike(near, &name) > 0.8);
                let hint = near.map_or("README lists all of them".into(), |near| format!("did you mean {near}?"));
                misfits.push(Misfit { problem: format!("there is no such setting: {hint}"), setting: name });
                continue;
            }
            let alone = Figment::from(Serialized::defaults(Settings::default())).merge((&name, value));
            if let Err(error) = alone.extract::<Settings>() {
                let problem = error.into_iter().map(|e| e.kind.to_string()).collect::<Vec<_>>().join("; ");
                misfits.push(Misfit { setting: name, problem });
            }
        }
        Ok(misfits)
    }
}

fn alike(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

/// Every setting's name, nested ones with a dot.
pub(super) fn known() -> Vec<String> {
    let defaults: Dict =
        Figment::from(Serialized::defaults(Settings::default())).extract().expect("settings are plain data");
    leaves(&defaults).into_iter().map(|(name, _)| name).collect()
}

fn leaves(dict: &Dict) -> Vec<(String, Value)> {
    let below = |(name, value): (&String, &Value)| match value {
        Value::Dict(_, inner) => {
            leaves(inner).into_iter().map(|(inner, value)| (format!("{name}.{inner}"), value)).collect()
        }
        value => vec![(name.clone(), value.clone())],
    };
    dict.iter().flat_map(below).collect()
}

impl Settings {
    /// Reads file and environment.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        Sources::new(file)?.settings()
    }

    /// As shown to people: passwords in addresses are covered, and what follows a question mark is left out.
    pub fn without_secrets(&self) -> Self {
        let cover = |url: &String| {
            // What cannot be read may still hold a password.
            let Ok(mut url) = reqwest::Url::parse(url) else { return "***".to_owned() };
            if url.password().is_some() {
                url.set_password(Some("***")).ok();
            }
            url.set_query(None);
            url.to_string()
        };
        Self {
            database_url: self.database_url.as_ref().map(cover),
            otlp_endpoint: self.otlp_endpoint.as_ref().map(cover),
            ..self.clone()
        }
    }
}

/// A folder that a path lies in and that exists, itself included.
pub(super) fn existing_ancestor(path: &Path) -> Option<PathBuf> {
    std::path::absolute(path).ok()?.ancestors().find(|folder| folder.exists()).map(Path::to_owned)
}
